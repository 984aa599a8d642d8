"""Pruned models through the tools."""

import json
import sys

import pytest
import torch
from mmengine.config import Config

from conftest import CONFIGS, TOOLS
from se_mm.models import SELayer
from se_mm.weights import fetch, read_checkpoint
from test_deploy import analysis, load, pictures, save  # noqa: F401  pictures is a fixture

CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'
DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
CIFAR = CONFIGS / 'studies' / 'se_r20_cifar10.py'


@pytest.fixture
def prune(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run_prune(*arguments):
        return run(sys.executable, TOOLS / 'prune.py', *arguments)

    return run_prune


def test_classifier(prune, run, scenes, tmp_path):
    model, data = save(CLASSIFIER, tmp_path / 'trained.pth'), f'data_root={scenes}'
    options = ('--flops', '0.5', '--importance', 'gate', '--num-images', '8', '--round-to', '4', '--cfg-options', data)
    code, output = prune(CLASSIFIER, 'trained.pth', 'small/net.pth', *options)
    assert code == 0 and 'top1' in output.replace('top-1 error', 'top1'), output
    small, cfg = load(tmp_path / 'small' / 'net.py', tmp_path / 'small' / 'net.pth'), Config.fromfile('small/net.py')
    widths = cfg.model.backbone
    assert all(width % 4 == 0 for width in (*widths.stage_channels, *sum(widths.mid_channels, [])))
    assert cfg.model.head.in_channels == widths.stage_channels[-1] < 256
    assert [unit.se_layer.conv1.conv.out_channels for unit in small.backbone.layer4] == [
        widths.stage_channels[-1] // 16
    ] * 2
    numbers = json.loads((tmp_path / 'small' / 'net.json').read_text())
    before, after = numbers['before'], numbers['after']
    assert 0.3 * before['backbone_flops'] < after['backbone_flops'] <= 0.5 * before['backbone_flops']
    assert after['parameters'] == sum(parameter.numel() for parameter in small.parameters())
    assert before['parameters'] == sum(parameter.numel() for parameter in model.parameters())
    assert after['stored_bytes'] < before['stored_bytes'] and after['latency_ms'] > 0
    assert 0 <= after['top-1 error'] <= 100

    code, output = run(
        sys.executable, TOOLS / 'train.py', 'small/net.py', '--resume', '--cfg-options', data, 'train_cfg.max_epochs=1',
        'optim_wrapper.optimizer.lr=0.0',
    )  # fmt: skip
    assert code == 0 and 'random weights' not in output, output  # of load_from, as there is nothing to resume yet
    weights = read_checkpoint(str(tmp_path / 'small' / 'net.pth'))['state_dict']
    trained = read_checkpoint('work_dirs/net/epoch_1.pth')['state_dict']
    assert all(torch.equal(trained[name], weights[name]) for name, _ in small.named_parameters())
    for tool, arguments in (
        ('train.py', ['small/net.py', '--resume', '--cfg-options', data, 'train_cfg.max_epochs=2']),
        ('test.py', ['small/net.py', 'work_dirs/net/epoch_2.pth', '--cfg-options', data]),
        ('compare.py', [CLASSIFIER, 'small/net.py']),
        ('export_onnx.py', ['small/net.py', 'work_dirs/net/epoch_2.pth', 'net.onnx', '--size', '96', '96']),
        ('deploy.py', ['small/net.py', 'work_dirs/net/epoch_2.pth', 'deployed.pth']),
    ):
        code, output = run(sys.executable, TOOLS / tool, *arguments)
        assert code == 0, output


def test_detector(prune, run, shapes, tmp_path):
    save(DETECTOR, tmp_path / 'trained.pth')
    data = ('--cfg-options', f'data_root={shapes}/')
    options = ('--flops', '0.6', '--importance', 'taylor', '--num-images', '8', '--round-to', '1', *data)
    code, output = prune(DETECTOR, 'trained.pth', 'net.pth', *options)
    assert code == 0 and 'AP, percent' in output, output
    cfg = Config.fromfile('net.py')
    assert list(cfg.model.neck.in_channels) == list(cfg.model.backbone.stage_channels)[1:] != [32, 64, 128, 256]
    code, output = run(sys.executable, TOOLS / 'test.py', 'net.py', 'net.pth', *data)
    assert code == 0, output
    (tmp_path / 'old.py').write_text(f"_base_ = '{DETECTOR}'\nmodel = dict(backbone=dict(pretrained='a.pth'))")
    code, output = prune('old.py', 'trained.pth', 'again.pth', '--no-eval', *options)
    assert code == 0, output
    first, again = (read_checkpoint(path)['state_dict'] for path in ('net.pth', 'again.pth'))
    assert all(torch.equal(first[name], again[name]) for name in first)  # the same images, prepared alike
    assert load('again.py', 'again.pth').backbone.frozen_stages == -1

    # another detector takes the backbone as it is
    (tmp_path / 'retinanet.py').write_text(f"""
_base_ = ['{CONFIGS}/_base_/faster_rcnn_coco.py']
model = dict(
    _delete_=True,
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone={cfg.model.backbone.to_dict()!r},
    neck=dict(type='FPN', in_channels={cfg.model.neck.in_channels!r}, out_channels=64, num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=64, feat_channels=64,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                              ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True), loss_bbox=dict(type='L1Loss'),
    ),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                   allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)
""")
    from se_mm.utils.config import build_model, load_config, use_scope

    use_scope(retinanet := load_config(tmp_path / 'retinanet.py'))
    model = build_model(retinanet)
    model.init_weights()
    weights = read_checkpoint('net.pth')['state_dict']
    assert all(torch.equal(tensor, weights[f'backbone.{name}']) for name, tensor in model.backbone.state_dict().items())
    assert len(model.extract_feat(torch.zeros(1, 3, 64, 64))) == 5


def test_static_gates(prune, pictures, tmp_path):  # noqa: F811
    model = load(CIFAR, fetch('se_mm://se_r20_cifar10'))
    analysis(tmp_path / 'gates', dict(SE_2_1='static', SE_2_2='idle', SE_2_3='works'), model)
    options = ('se_mm://se_r20_cifar10', 'net.pth', '--static', 'gates', '--cfg-options', f'data_root={pictures}')
    code, output = prune(CIFAR, *options[:4], '--max-loss', '-200', *options[4:])
    assert code == 1 and 'no SE layer can be folded away within --max-loss -200' in output and 'Traceback' not in output
    assert not list(tmp_path.glob('net.*'))
    code, output = prune(CIFAR, *options[:4], '--max-loss', '200', *options[4:])
    assert code == 0 and output.count('is folded away') == 2, output
    small = load(tmp_path / 'net.py', tmp_path / 'net.pth')
    numbers = json.loads((tmp_path / 'net.json').read_text())
    assert [row['se_layers'] for row in (numbers['before'], numbers['after'])] == [9, 7]
    assert [isinstance(unit.se_layer, SELayer) for unit in small.backbone.stage1] == [False, False, True]
    code, output = prune('net.py', 'net.pth', 'again.pth', '--static', 'gates', *options[4:])
    assert code == 1 and 'is of other weights' in output and 'Traceback' not in output


def test_bad_input(prune, scenes, tmp_path):
    save(CLASSIFIER, tmp_path / 'trained.pth')
    (tmp_path / 'gn.py').write_text(
        f"_base_ = '{CLASSIFIER}'\nmodel = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=4)))"
    )
    save(tmp_path / 'gn.py', tmp_path / 'gn.pth')
    half = ('--flops', '0.5')
    (tmp_path / 'c4.py').write_text(f"""
_base_ = '{DETECTOR}'
model = dict(
    backbone=dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
    neck=None,
    rpn_head=dict(in_channels=128, anchor_generator=dict(strides=[16])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, featmap_strides=[16]), bbox_head=dict(in_channels=128)
    ),
)
""")
    save(tmp_path / 'c4.py', tmp_path / 'c4.pth')
    (tmp_path / 'plain.py').write_text(f"_base_ = '{CLASSIFIER}'\nmodel = dict(backbone=dict(with_se=False))")
    save(tmp_path / 'plain.py', tmp_path / 'plain.pth')
    five = load(CLASSIFIER, 'trained.pth').state_dict()
    five.update({name: tensor[:5] for name, tensor in five.items() if name.startswith('head.')})
    torch.save(dict(state_dict=five), 'five.pth')
    for code, words, *arguments in (
        (2, 'net.onnx: give a file with the suffix', CLASSIFIER, 'trained.pth', 'net.onnx', *half),
        (2, '--flops 1.5: give a share between 0 and 1', CLASSIFIER, 'trained.pth', 'net.pth', '--flops', '1.5'),
        (2, 'one of the arguments --flops --static is required', CLASSIFIER, 'trained.pth', 'net.pth'),
        (1, 'trained.pth is already there', CLASSIFIER, 'trained.pth', 'trained.pth', *half),
        (1, 'cannot be pruned: gn1 is GroupNorm', 'gn.py', 'gn.pth', 'net.pth', *half, '--no-eval'),
        (1, '--flops 0.001: at least', CLASSIFIER, 'trained.pth', 'net.pth', '--flops', '0.001', '--no-eval'),
        (
            1,
            'folder nowhere does not exist',
            CLASSIFIER,
            'trained.pth',
            'net.pth',
            *half,
            '--cfg-options',
            'data_root=nowhere',
        ),
        (1, 'neither a neck nor a head', 'c4.py', 'c4.pth', 'net.pth', *half, '--no-eval'),
        (2, '--keep belongs to --flops', CLASSIFIER, 'trained.pth', 'net.pth', '--static', 'x', '--keep', 'stages'),
        (
            1,
            'no SE layer; choose',
            'plain.py',
            'plain.pth',
            'net.pth',
            *half,
            '--no-eval',
            '--importance',
            'gate',
            '--cfg-options',
            f'data_root={scenes}',
        ),
        (
            1,
            'the config that would be written does not build the network',
            CLASSIFIER,
            'five.pth',
            'net.pth',
            *half,
            '--no-eval',
            '--cfg-options',
            'model.head.num_classes=5',
        ),
        (1, 'another architecture', CIFAR, 'trained.pth', 'net.pth', *half, '--no-eval'),
    ):
        found, output = prune(*arguments)
        assert found == code and words in output and 'Traceback' not in output, output
    assert not list(tmp_path.glob('net.*'))

"""Deployed models through the tools, against the models as they were trained."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from conftest import CONFIGS, TOOLS
from se_mm.analysis.constant_gates import constant_gates
from se_mm.analysis.gates import weights_digest
from se_mm.conversion.deployed import largest_difference
from se_mm.conversion.onnx_file import largest_share
from se_mm.utils import InputError
from se_mm.utils.config import build_model, load_config, use_scope
from se_mm.weights import fetch, read_checkpoint

CLASSIFIER = CONFIGS / 'studies' / 'se_r20_cifar10.py'
DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'


@pytest.fixture
def deploy(run, tmp_path):
    def run_deploy(*arguments):
        return run(sys.executable, TOOLS / 'deploy.py', *arguments)

    return run_deploy


@pytest.fixture
def pictures(tmp_path):
    """Test images of ten classes, 8 each."""
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / 'cifar' / 'test' / f'kind{label}'
        folder.mkdir(parents=True)
        for i in range(8):
            cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    return tmp_path / 'cifar'


def save(config, path, seed=0):
    """A checkpoint of random weights with other statistics of batch norms than the initial ones."""
    cfg = load_config(config)
    use_scope(cfg)
    torch.manual_seed(seed)
    model = build_model(cfg)
    model.init_weights()
    model.backbone.train()
    with torch.no_grad():
        for _ in range(20):
            model.backbone(torch.randn(4, 3, 64, 64))
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('a', 'b'))), state_dict=model.state_dict()), path)
    return model.eval()


def load(config, checkpoint):
    cfg = load_config(config)
    use_scope(cfg)
    model = build_model(cfg)
    model.load_state_dict(read_checkpoint(str(checkpoint))['state_dict'], strict=True)
    return model.eval()


def test_detector_with_pictures(deploy, shapes, tmp_path):
    model = save(DETECTOR, tmp_path / 'trained.pth')
    images = sorted((shapes / 'val').iterdir())[:2]
    code, output = deploy(DETECTOR, tmp_path / 'trained.pth', tmp_path / 'out.safetensors', '--images', *images)
    assert code == 0 and 'largest difference of features' in output and 'layer4.1' in output, output
    deployed = load(tmp_path / 'out.py', tmp_path / 'out.safetensors')
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for expected, found in zip(model.backbone(x), deployed.backbone(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any('bn' in name for name in deployed.backbone.state_dict())


def test_shared_head_is_deployed_with_the_backbone(deploy, tmp_path):
    (tmp_path / 'c4.py').write_text(
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'\n"
        'widths = dict(base_channels=8, se_ratio=4)\n'
        "part = dict(widths, depth=18, style='pytorch', norm_cfg=dict(type='BN'), norm_eval=False, init_cfg=None)\n"
        'model = dict(\n'
        "    backbone=dict(part, type='se_mm.SEResNet', frozen_stages=-1),\n"
        '    rpn_head=dict(in_channels=32, feat_channels=8),\n'
        '    roi_head=dict(\n'
        "        shared_head=dict(part, type='se_mm.SEResLayer'),\n"
        '        bbox_roi_extractor=dict(out_channels=32),\n'
        '        bbox_head=dict(in_channels=64),\n'
        '    ),\n'
        ')\n'
    )
    model = save(tmp_path / 'c4.py', tmp_path / 'trained.pth')
    code, output = deploy('c4.py', 'trained.pth', 'out.safetensors')
    assert code == 0 and output.count('largest difference of features') == 2, output
    assert 'roi_head.shared_head' in output and 'layer4.1' in output
    deployed = load(tmp_path / 'out.py', tmp_path / 'out.safetensors')
    x = torch.randn(3, 32, 14, 14, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = (part.roi_head.shared_head(x) for part in (model, deployed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert not any('bn' in name for name in deployed.roi_head.shared_head.state_dict())


def test_answers_of_the_deployed_classifier(deploy, run, pictures, tmp_path):
    code, output = deploy(CLASSIFIER, 'se_mm://se_r20_cifar10', tmp_path / 'out.pth')
    assert code == 0, output
    data, errors = f'data_root={pictures}', []
    for config, checkpoint in ((CLASSIFIER, 'se_mm://se_r20_cifar10'), (tmp_path / 'out.py', tmp_path / 'out.pth')):
        code, output = run(
            sys.executable,
            TOOLS / 'test.py',
            config,
            checkpoint,
            '--cfg-options',
            data,
            '--work-dir',
            tmp_path / 'work',
        )
        assert code == 0, output
        metrics = json.loads((tmp_path / 'work' / 'metrics.json').read_text())['metrics']
        errors.append(metrics['error/top1'] if 'error/top1' in metrics else metrics)
    assert errors[0] == errors[1] and errors[0]
    code, output = run(sys.executable, TOOLS / 'test.py', CLASSIFIER, tmp_path / 'out.pth', '--cfg-options', data)
    assert code == 1 and 'use the config that tools/deploy.py wrote' in output, output
    checkpoint = ['se_mm://se_r20_cifar10', '--cfg-options', data]
    code, output = run(sys.executable, TOOLS / 'test.py', tmp_path / 'out.py', *checkpoint)
    assert code == 1 and 'use the config it was trained with' in output, output
    code, output = run(sys.executable, TOOLS / 'train.py', tmp_path / 'out.py', '--cfg-options', data)
    assert code == 1 and 'the backbone is deployed, and cannot be trained' in output and 'Traceback' not in output, (
        output
    )


def analysis(folder, roles, model):
    """What tools/analyze_excitation.py writes of a model, as far as it is read."""
    folder.mkdir()
    weights = weights_digest(model)
    names = list(roles)
    layers = [dict(name=name, path=f'backbone.stage1.{i}.se_layer') for i, name in enumerate(names)]
    verdicts = {name: dict(role=role, classes=None, reason='') for name, role in roles.items()}
    numbers = dict(network='net', weights_sha256=weights, layers=layers, verdicts=verdicts)
    (folder / 'excitation.json').write_text(json.dumps([numbers]))
    rng = np.random.default_rng(0)
    means = {f'{name}/mean': rng.uniform(0.2, 0.8, (3, 16)) for name in names}
    np.savez_compressed(folder / 'net.npz', weights=np.array(weights), **means)
    return means


def test_constant_gates(deploy, tmp_path):
    model = load(CLASSIFIER, fetch('se_mm://se_r20_cifar10'))
    means = analysis(tmp_path / 'gates', dict(SE_2_1='static', SE_2_2='idle', SE_2_3='works'), model)
    found = constant_gates(tmp_path / 'gates', model)
    assert set(found) == {'backbone.stage1.0.se_layer', 'backbone.stage1.1.se_layer'}
    assert torch.equal(found['backbone.stage1.0.se_layer'], torch.from_numpy(means['SE_2_1/mean'][0]))
    assert torch.equal(found['backbone.stage1.1.se_layer'], torch.ones(16, dtype=torch.float64))

    code, output = deploy(
        CLASSIFIER, 'se_mm://se_r20_cifar10', tmp_path / 'out.pth', '--constant-gates', tmp_path / 'gates'
    )
    assert code == 0, output
    assert Config.fromfile(tmp_path / 'out.py').model.backbone.with_se == ((False, False, True), True, True)
    blocks = load(tmp_path / 'out.py', tmp_path / 'out.pth').backbone.stage1
    assert [any('se_layer' in name for name in block.state_dict()) for block in blocks] == [False, False, True]


def test_bad_input(deploy, tmp_path):
    model = save(CLASSIFIER, tmp_path / 'trained.pth')
    cases = {
        'give a file with the suffix': [CLASSIFIER, tmp_path / 'trained.pth', 'new.py'],
        'is already there': [CLASSIFIER, tmp_path / 'trained.pth', tmp_path / 'trained.pth'],
        'ResNet is none of this package': ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'x.pth', 'new.pth'],
        'another architecture': [CONFIGS / 'studies' / 'se_r18_scenes8.py', tmp_path / 'trained.pth', 'new.pth'],
        'features differ by more than --tolerance': [
            CLASSIFIER, tmp_path / 'trained.pth', 'new.pth', '--tolerance', '1e-12'
        ],
        'cannot be read': [CLASSIFIER, tmp_path / 'trained.pth', 'new.pth', '--constant-gates', tmp_path],
    }  # fmt: skip
    for text, arguments in cases.items():
        code, output = deploy(*arguments)
        assert code == 1 and text in output and 'Traceback' not in output, output
    assert not list(tmp_path.glob('new.*'))

    analysis(tmp_path / 'gates', dict(SE_2_1='static'), model)
    save(CLASSIFIER, tmp_path / 'other.pth', seed=1)
    with_gates = ('--constant-gates', tmp_path / 'gates')
    code, output = deploy(CLASSIFIER, tmp_path / 'other.pth', 'new.pth', *with_gates)
    assert code == 1 and 'excitation.json is of other weights: run tools/analyze_excitation.py' in output, output
    old = (tmp_path / 'gates' / 'excitation.json').read_text()
    (tmp_path / 'gates' / 'excitation.json').write_text(old.replace(weights_digest(model), 'an earlier analysis'))
    with pytest.raises(InputError, match='excitation.json is of other weights'):
        constant_gates(tmp_path / 'gates', model)
    (tmp_path / 'gates' / 'excitation.json').write_text(old.replace('static', 'works'))
    with pytest.raises(InputError, match='excitation.json calls no SE layer static or idle'):
        constant_gates(tmp_path / 'gates', model)
    (tmp_path / 'gates' / 'excitation.json').write_text(old)
    np.savez_compressed(tmp_path / 'gates' / 'net.npz', **{'SE_2_1/mean': np.ones((3, 16))})
    with pytest.raises(InputError, match='net.npz is of other weights'):
        constant_gates(tmp_path / 'gates', model)
    for networks, text in (([{}, {}], 'has 2 networks'), ([dict(network='n', layers=[], verdicts={})], 'no verdicts')):
        (tmp_path / 'gates' / 'excitation.json').write_text(json.dumps([{**dict(verdicts={}), **n} for n in networks]))
        with pytest.raises(InputError, match=text):
            constant_gates(tmp_path / 'gates', model)
    for content in ([{'a': 1}], {'a': 1}, [1], 1, [dict(verdicts=dict(SE_2_1='static'))]):
        (tmp_path / 'gates' / 'excitation.json').write_text(json.dumps(content))
        with pytest.raises(InputError, match='cannot be read .*: give a folder of tools/analyze_excitation'):
            constant_gates(tmp_path / 'gates', model)


def test_nan_is_the_largest_difference():
    one, nan = torch.ones(2), torch.full((2,), torch.nan)
    for after in ([one, nan], [nan, one]):
        assert np.isnan(largest_difference([[one, one]], [after]))
        assert np.isnan(largest_share([a.numpy() for a in after], [one.numpy(), one.numpy()]))
    assert largest_difference([[one, one]], [[one, 3 * one]]) == 2

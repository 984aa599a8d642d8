"""A stage as the shared head of C4 detectors, beside mmdet's and beside the backbone that the stage is of."""

from copy import deepcopy
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.models.roi_heads.shared_heads import ResLayer
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models.utils import ResLayerExtraNorm
from torch import nn

from conftest import CONFIGS
from se_mm.conversion import timm_state, twin_config
from se_mm.models import SELayer, SENet, SEResLayer, SEResNet, SEResNeXt
from se_mm.utils import InputError
from se_mm.weights import load_backbone, recognise

OWN_C4 = CONFIGS / 'faster_rcnn_c4' / 'faster_rcnn_c4_r50_coco2014.py'
C4 = Path(mmdet.__file__).parent / '.mim' / 'configs' / 'faster_rcnn' / 'faster-rcnn_r50-caffe_c4-1x_coco.py'


@torch.no_grad()
def randomize(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_((noise - 0.5) * (12 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else noise + 0.5)
    return module


def open_gates(module):
    """Gates of one turn SE into the identity."""
    for layer in module.modules():
        if isinstance(layer, SELayer):
            nn.init.zeros_(layer.conv2.conv.weight)
            nn.init.constant_(layer.conv2.conv.bias, 50.0)
    return module


def regions(channels, dtype=torch.float32):
    return torch.randn(3, channels, 6, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(depth=50, stage=1),
        dict(depth=50, stage=1, style='caffe', norm_eval=False),
        dict(depth=50, stage=2, stride=1, dilation=2),
        dict(depth=50, stage=1, with_cp=True, norm_cfg=dict(type='BN', requires_grad=False)),
        dict(depth=18),
        dict(depth=50, stage=1, extra_norm=True, norm_eval=False),
    ],
    ids=lambda kwargs: '-'.join(kwargs),
)
def test_with_open_gates_it_is_mmdets_layer(kwargs):
    """The same parameters, outputs, gradients and statistics."""
    ours = SEResLayer(**kwargs).double()
    theirs = (ResLayerExtraNorm if kwargs.pop('extra_norm', False) else ResLayer)(**kwargs)
    randomize(theirs.double())
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing and not unexpected and all('se_layer' in name for name in missing)
    open_gates(ours)
    first = next(module for module in theirs.modules() if isinstance(module, nn.Conv2d))
    x = regions(first.in_channels, torch.float64)
    outputs, images = [], []
    for model in (ours, theirs):
        model.train()
        images.append(x.clone().requires_grad_())
        outputs.append(model(images[-1]))
        outputs[-1].square().mean().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(images[0].grad, images[1].grad)
    of_ours, buffers = dict(ours.named_parameters()), dict(ours.named_buffers())
    for name, parameter in theirs.named_parameters():
        assert of_ours[name].requires_grad == parameter.requires_grad
        torch.testing.assert_close(of_ours[name].grad, parameter.grad)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)


@pytest.fixture(scope='module')
def backbones(tmp_path_factory):
    """Networks with files of their weights, with names of OpenMMLab and of timm."""
    folder, found = tmp_path_factory.mktemp('weights'), {}
    for name, network in (('SEResNet', SEResNet(18)), ('SEResNeXt', SEResNeXt(50, groups=4, base_width=8))):
        torch.save(dict(state_dict=randomize(network).state_dict()), folder / f'{name}.pth')
        found[name] = network.eval(), folder / f'{name}.pth'
    network, _ = found['SEResNeXt']
    torch.save(timm_state(recognise(network.state_dict(), 'x'), 'x'), folder / 'timm.pth')
    found['timm'] = network, folder / 'timm.pth'
    return found


@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('SEResNet', dict(depth=18)),
        ('SEResNeXt', dict(depth=50, groups=4, base_width=8)),
        ('timm', dict(depth=50, groups=4, base_width=8)),
        ('SEResNet', dict(depth=18, stage=1)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.get('stage', 3)),
)
@torch.no_grad()
def test_loads_its_stage_of_a_backbones_checkpoint(backbones, name, kwargs):
    """All of the stage, nothing else, and it computes what the backbone's stage computes; deployed, too."""
    network, path = backbones[name]
    head = SEResLayer(**kwargs, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    head.init_weights()
    stage = getattr(network, head.stage_names[0])
    x = regions(stage[0].inplanes)
    head.eval()
    torch.testing.assert_close(head(x), stage(x), rtol=0, atol=0)
    report = head.switch_to_deploy()
    assert {row.done for row in report if row.kind == 'norm'} == {'folded'}
    torch.testing.assert_close(head(x), stage(x), rtol=1e-4, atol=1e-4 * stage(x).abs().max().item())
    again = SEResLayer(**kwargs, deploy=True)
    again.load_state_dict(head.state_dict(), strict=True)
    torch.testing.assert_close(again(x), head(x))


def test_weights_that_do_not_fit(backbones, tmp_path):
    (plain_network, plain), (_, grouped) = backbones['SEResNet'], backbones['SEResNeXt']
    for path, kwargs, words in (
        (plain, dict(depth=34), 'set depth=18 (is 34)'),
        (plain, dict(depth=18, se_ratio=8), 'set se_ratio=16 (is 8)'),
        (plain, dict(depth=18, with_se=False), 'set with_se=True (is False)'),
        (plain, dict(depth=18, se_cfg=dict(variant='bump')), "set se_cfg={} (is {'variant': 'bump'})"),
        (plain, dict(depth=50), 'set depth=18 (is 50)'),
        (grouped, dict(depth=50), 'set groups=4 (is 1)'),
        (grouped, dict(depth=50, groups=4), 'set base_width=8 (is 4)'),
        (grouped, dict(depth=101, groups=4, base_width=8), 'set depth=50 (is 101)'),
        (plain, dict(depth=18, base_channels=32), 'set base_channels=64 (is 32)'),
        (plain, dict(depth=18, avg_down=True), 'set avg_down=False (is True)'),
    ):
        with pytest.raises(InputError) as error:
            load_backbone(SEResLayer(**kwargs), str(path))
        assert words in str(error.value)
    three = {k: v for k, v in plain_network.state_dict().items() if not k.startswith('layer4.')}
    torch.save(dict(state_dict=three), tmp_path / 'three.pth')
    with pytest.raises(InputError, match=r'of its \d+ tensors \d+ \(layer4\.0\.conv1\.weight, .* are missing'):
        load_backbone(SEResLayer(18), str(tmp_path / 'three.pth'))
    for kwargs in (dict(se_cfg=dict(variant='standard', bias=True)), dict(se_cfg=dict(divisor=2))):  # written defaults
        load_backbone(SEResLayer(18, **kwargs), str(plain))
    odd, pruned, unfit = (
        SEResNet(18, se_ratio=48),
        SEResNet(18, stage_channels=(64, 64, 128, 250, 500), with_se=(True, True, True, False)),
        SENet(base_channels=8, groups=4, stem_channels=16),
    )
    for name, network in (('odd', odd), ('pruned', pruned), ('unfit', unfit)):
        torch.save(dict(state_dict=network.state_dict()), tmp_path / f'{name}.pth')
    load_backbone(SEResLayer(18, se_ratio=48), str(tmp_path / 'odd.pth'))
    fitting = dict(stage_channels=(64, 64, 128, 250, 500), with_se=False)
    load_backbone(SEResLayer(18, **fitting), str(tmp_path / 'pruned.pth'))
    with pytest.raises(InputError, match=r'set stage_channels=\[64, 64, 128, 250, 500\], mid_.*, with_se=False'):
        load_backbone(SEResLayer(18), str(tmp_path / 'pruned.pth'))
    with pytest.raises(InputError, match='is of SENet-154, whose units no shared head has'):
        load_backbone(SEResLayer(50), str(tmp_path / 'unfit.pth'))
    normed = {**plain_network.state_dict(), **SEResLayer(18, extra_norm=True).state_dict()}
    torch.save(dict(state_dict=normed), tmp_path / 'normed.pth')
    with pytest.raises(InputError, match=r'4 \(norm.weight, .* have no place'):
        load_backbone(SEResLayer(18), str(tmp_path / 'normed.pth'))
    no_se = {k: v for k, v in plain_network.state_dict().items() if 'se_layer' not in k}
    torch.save(dict(state_dict=no_se), tmp_path / 'plain.pth')
    report = load_backbone(SEResLayer(18, extra_norm=True), str(tmp_path / 'plain.pth'), fresh_se='identity')
    assert report.identity and {name.split('.')[0] for name in report.fresh} == {'layer4', 'norm'}


def test_choices_are_named():
    for kwargs, words in (
        (dict(stage=0), 'stage=0: choose 1, 2 or 3'),
        (dict(depth=20), 'SEResLayer has no depth 20'),
        (dict(with_se=(True,)), r'with_se=\(True,\) needs 2 entries'),
    ):
        with pytest.raises(ValueError, match=words):
            SEResLayer(**dict(dict(depth=18), **kwargs))
    with pytest.raises(TypeError, match='a shared head has no argument frozen_stages, which belongs to the backbone'):
        SEResLayer(18, frozen_stages=1)
    with pytest.raises(ValueError, match='groups=32 needs bottlenecks: depth 34 has none'):
        SEResLayer(34, groups=32)
    deployed = SEResLayer(18, extra_norm=True, deploy=True)
    assert not any(module.training for module in deployed.modules())


def c4_detectors(name):
    """A C4 Faster R-CNN of mmdet or of the configs here, with 18 layers, and its SE twin with gates of one."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(C4 if name == 'mmdet' else OWN_C4)
    if name == 'mmdet':
        twin = deepcopy(cfg)
        twin.merge_from_dict(twin_config(cfg, weights='none')[0])  # with the normalisation of cfg
    else:
        twin = Config.fromfile(OWN_C4.with_name('faster_rcnn_c4_se_r50_coco2014.py'))
    norm_cfg = dict(type='BN', requires_grad=True)
    part = dict(depth=18, style='pytorch', norm_cfg=norm_cfg, norm_eval=True, init_cfg=None)
    models = []
    for model in (cfg.model, twin.model):
        model.backbone.update(part, frozen_stages=1)
        model.roi_head.shared_head.update(part)
        model.rpn_head.update(in_channels=256, feat_channels=16)
        model.roi_head.bbox_roi_extractor.update(out_channels=256)
        model.roi_head.bbox_roi_extractor.roi_layer.output_size = 4
        model.roi_head.bbox_head.update(roi_feat_size=2, in_channels=512, num_classes=3)
        torch.manual_seed(0)
        models.append(MODELS.build(model))
    theirs, ours = models
    for module in (theirs.backbone, theirs.roi_head.shared_head):
        randomize(module)
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected and all('se_layer' in name for name in missing)
    return theirs, open_gates(ours)


@pytest.mark.parametrize('name', ['mmdet', 'coco2014'])
def test_with_open_gates_a_twin_is_mmdets_detector(name):
    """Losses, gradients and detections of the whole detector."""
    theirs, ours = c4_detectors(name)
    assert type(ours.roi_head.shared_head) is SEResLayer
    batch = demo_mm_inputs(2, [(3, 64, 64)] * 2, num_items=[3, 2], num_classes=3)
    losses = []
    for model in (theirs, ours):
        model.train()
        torch.manual_seed(1)  # of the samplers
        found = model(**model.data_preprocessor(deepcopy(batch), True), mode='loss')
        loss, values = model.parse_losses(found)
        loss.backward()
        losses.append(values)
    torch.testing.assert_close(dict(losses[0]), dict(losses[1]), rtol=1e-4, atol=1e-5)
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert (parameter.grad is None) == (gradients[name].grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)
    results = []
    for model in (theirs, ours):
        model.eval()
        with torch.no_grad():
            results.append(model(**model.data_preprocessor(deepcopy(batch), False), mode='predict')[0].pred_instances)
    torch.testing.assert_close(results[0].bboxes, results[1].bboxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(results[0].scores, results[1].scores)


@pytest.mark.parametrize('fused_se', [True, 'torch', False])
def test_image_without_regions(fused_se):
    head = SEResLayer(50, base_channels=16, fused_se=fused_se).eval()
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            assert head(torch.randn(0, 256, 14, 14)).shape == (0, 512, 7, 7)

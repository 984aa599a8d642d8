from copy import deepcopy
from pathlib import Path

import mmdet
import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models import ImageClassifier

from conftest import build_without_numbers
from se_mm.conversion.twins import backbones, twin_backbone
from se_mm.models import SELayer


def read_once(read):
    """A function that reads configs, with a memory: hundreds of configs have the same bases."""
    known = {}

    def remembering(filename, *arguments, **options):
        key = (str(filename), repr(arguments), repr(options))
        if key not in known:
            known[key] = read(filename, *arguments, **options)
        return deepcopy(known[key])

    return remembering


def plain_backbones(package, monkeypatch):
    """How many configs of a package write of plain backbones, and the distinct settings of these, nested ones too."""
    folder = Path(package.__file__).parent / '.mim' / 'configs'
    found, configs = {}, 0
    monkeypatch.setattr(Config, '_file2dict', staticmethod(read_once(Config._file2dict)))
    for path in sorted(folder.rglob('*.py')):
        if '_base_' in path.parts:
            continue
        text = path.read_text()
        if 'backbone' not in text and '_base_/models' not in text:  # it has the backbone of another config
            continue
        try:
            model = Config.fromfile(path).model.to_dict()
        except Exception:  # configs in other languages, or needing files or packages that are not installed
            continue
        parts = [backbone for _, backbone in backbones(model)]
        configs += bool(parts)
        for part in parts:
            settings = {k: v for k, v in part.items() if k not in ('init_cfg', 'pretrained')}
            found.setdefault(repr(sorted(settings.items())), (path.name, settings))
    return configs, list(found.values())


@pytest.mark.parametrize('package, configs, settings', [(mmdet, 390, 77), (mmpretrain, 55, 27)])
@pytest.mark.slow
def test_every_config_accepts_se(package, configs, settings, monkeypatch):
    """Only the type is changed, and what a type like ResNetV1d stands for."""
    total, found = plain_backbones(package, monkeypatch)
    assert total >= configs and len(found) >= settings
    init_default_scope(package.__name__)
    failures = []
    for name, plain in found:
        try:
            theirs, ours = build_without_numbers(plain), build_without_numbers(twin_backbone(plain))
        except Exception as error:
            failures.append(f'{name}: {error}')
            continue
        # mmpretrain has other names in deep stems
        before = sorted(tuple(v.shape) for v in theirs.state_dict().values())
        if before != sorted(tuple(v.shape) for k, v in ours.state_dict().items() if 'se_layer' not in k):
            failures.append(f'{name}: other parameters than the plain backbone')
    assert not failures, '\n'.join(failures)


LAYER_DECAY = dict(
    type='OptimWrapper',
    constructor='LearningRateDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.7, norm_decay_mult=0.0, custom_keys={'.fc': dict(decay_mult=0.5)}),
)


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='ResNet', depth=34),
        dict(type='ResNet', depth=50),
        dict(type='ResNet', depth=101),
        dict(type='ResNet', depth=152),
        dict(type='ResNeXt', depth=50),
    ],
    ids=lambda backbone: f'{backbone["type"]}-{backbone["depth"]}',
)
def test_layer_wise_decay_of_learning_rates(backbone):
    """Parameters that both networks have get the options that they have in mmpretrain's; SE those of its unit."""
    init_default_scope('mmpretrain')
    groups = []
    for cfg in (backbone, twin_backbone(backbone, 'mmpretrain')):
        model = ImageClassifier(cfg, head=dict(type='LinearClsHead', num_classes=2, in_channels=4))
        optimizer = build_optim_wrapper(model, LAYER_DECAY).optimizer
        keys = ('lr', 'lr_scale', 'weight_decay', 'layer_id')
        groups.append({group['param_name']: {key: group[key] for key in keys} for group in optimizer.param_groups})
    plain, se = groups
    assert plain == {name: options for name, options in se.items() if '.se_layer.' not in name}
    assert len(se) > len(plain)
    for name, options in se.items():
        if '.se_layer.' in name:
            assert options == plain[f'{name.partition(".se_layer.")[0]}.conv1.weight']


@pytest.mark.parametrize('name', ['SEResNet', 'se_mm.SEResNet'])
def test_detector_with_swapped_type(name):
    cfg = Config.fromfile(
        Path(mmdet.__file__).parent / '.mim' / 'configs' / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'
    )
    cfg.model.backbone.type = name
    init_default_scope('mmdet')
    assert type(MODELS.build(cfg.model).backbone).__module__ == 'se_mm.models.resnet'


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='ResNet', depth=50),
        dict(type='ResNeSt', depth=50),
        dict(type='Res2Net', depth=50, scales=4, base_width=26),
        dict(type='RegNet', arch='regnetx_400mf'),
    ],
    ids=lambda backbone: backbone['type'],
)
def test_se_as_a_plugin_of_other_backbones(backbone):
    """Where they take plugins; a ResNet with it has the parameters of SEResNet, and computes the same."""
    init_default_scope('mmdet')
    plugin = dict(cfg=dict(type='se_mm.SELayer', ratio=8), position='after_conv3')
    model = MODELS.build(dict(backbone, plugins=[plugin]))
    gates = []
    for module in model.modules():
        if isinstance(module, SELayer):
            module.register_forward_hook(lambda module, args, out: gates.append(module))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.train()
    sum(out.square().mean() for out in model(image)).backward()
    assert len(gates) == sum(model.stage_blocks)
    assert all(parameter.grad is not None for module in gates for parameter in module.parameters())
    if backbone['type'] == 'ResNet':
        ours = MODELS.build(dict(type='SEResNet', depth=50, se_ratio=8))
        ours.load_state_dict(model.state_dict())
        model.eval()
        for a, b in zip(ours.eval()(image), model(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())

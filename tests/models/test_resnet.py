import inspect

import pytest
import timm
import torch
from mmdet.models import ResNet as MMDetResNet
from mmdet.models import ResNeXt as MMDetResNeXt
from mmengine.registry import init_default_scope
from mmpretrain.models import SEResNet as MMPretrainSEResNet
from mmpretrain.models import SEResNeXt as MMPretrainSEResNeXt
from torch import nn

from se_mm.models import SEVGG, SELayer, SEResNet, SEResNeXt


def randomize(module, seed=0):
    """Random weights and batch norm statistics, so that nothing is hidden by zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.copy_((noise - 0.5) * 2 / fan_in**0.5 if tensor.ndim > 1 else noise + 0.5)
    return module


def images(batch=2, size=64):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def outputs_and_gradients(module, x, forward=None):
    outs = (forward or module)(x)
    loss = sum((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in outs)
    module.zero_grad()
    loss.backward()
    return outs, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, x, rename=lambda name: name, forward=None, ignore=()):
    """Equal outputs and equal gradients of all parameters."""
    our_outs, our_grads = outputs_and_gradients(ours, x)
    their_outs, their_grads = outputs_and_gradients(theirs, x, forward)
    assert len(our_outs) == len(their_outs) > 0
    for a, b in zip(our_outs, their_outs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    their_grads = {rename(name): grad for name, grad in their_grads.items()}
    assert set(our_grads) - set(ignore) == set(their_grads)
    smallest = 1e-6 * max(grad.abs().max() for grad in their_grads.values())  # below it a gradient is rounding
    for name, grad in their_grads.items():
        scale = grad.abs().max().clamp(min=smallest)
        torch.testing.assert_close(our_grads[name] / scale, grad / scale, rtol=1e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'ours, theirs',
    [
        (lambda: SEResNet(50, norm_eval=False), lambda: MMPretrainSEResNet(50, out_indices=(0, 1, 2, 3))),
        (lambda: SEResNet(101, norm_eval=False), lambda: MMPretrainSEResNet(101, out_indices=(0, 1, 2, 3))),
        (lambda: SEResNeXt(50, norm_eval=False), lambda: MMPretrainSEResNeXt(50, out_indices=(0, 1, 2, 3))),
    ],
    ids=['SEResNet-50', 'SEResNet-101', 'SEResNeXt-50'],
)
def test_equal_to_mmpretrain(ours, theirs, training):
    init_default_scope('mmpretrain')
    ours, theirs = ours().double(), randomize(theirs().double())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.train(training), theirs.train(training)
    assert_same(ours, theirs, images())


def timm_name(name):
    for old, new in {
        'layer0.': '',
        'se_module.fc': 'se_layer.conv',
        'se.fc': 'se_layer.conv',
    }.items():
        name = name.replace(old, new)
    for layer in ('se_layer.conv1', 'se_layer.conv2'):
        name = name.replace(f'{layer}.', f'{layer}.conv.')
    return name


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'ours, name',
    [
        (lambda: SEResNet(50, norm_eval=False), 'seresnet50'),
        (lambda: SEResNeXt(50, norm_eval=False), 'seresnext50_32x4d'),
        (lambda: SEResNet(50, style='caffe', stem_pool_ceil_mode=True, norm_eval=False), 'legacy_seresnet50'),
        (lambda: SEResNeXt(50, stem_pool_ceil_mode=True, norm_eval=False), 'legacy_seresnext50_32x4d'),
    ],
    ids=['seresnet50', 'seresnext50_32x4d', 'legacy_seresnet50', 'legacy_seresnext50_32x4d'],
)
def test_equal_to_timm(ours, name, training):
    theirs = randomize(timm.create_model(name, num_classes=0).double())
    if 'legacy' in name:
        stages = [getattr(theirs, f'layer{i}') for i in range(5)]
        stem = stages.pop(0)
        first = nn.Sequential(stem, theirs.pool0) if hasattr(theirs, 'pool0') else stem
    else:
        first = nn.Sequential(theirs.conv1, theirs.bn1, theirs.act1, theirs.maxpool)
        stages = [getattr(theirs, f'layer{i}') for i in range(1, 5)]

    def forward(x):
        x, outs = first(x), []
        for stage in stages:
            x = stage(x)
            outs.append(x)
        return outs

    ours = ours().double()
    ours.load_state_dict({timm_name(k): v for k, v in theirs.state_dict().items()}, strict=True)
    ours.train(training), theirs.train(training)
    assert_same(ours, theirs, images(), timm_name, forward)


def test_ceil_mode_differs_from_floor_mode_where_it_should():
    floor, ceil = SEResNet(18), SEResNet(18, stem_pool_ceil_mode=True)
    ceil.load_state_dict(randomize(floor).state_dict())
    floor.eval(), ceil.eval()
    x = images().float()
    assert not torch.allclose(floor(x)[0], ceil(x)[0])
    assert [tuple(o.shape) for o in floor(x)] == [tuple(o.shape) for o in ceil(x)]


# Journal version (arXiv 1709.01507 v4) and the layer tables of the released networks: parameters
# with a 1000-way classifier. The SE part is (2/r) sum N_s C_s^2 weights (section 4) plus biases.
PUBLISHED = {
    (SEResNet, 50): 28_088_024,
    (SEResNet, 101): 49_326_872,
    (SEResNet, 152): 66_821_848,
    (SEResNeXt, 50): 27_559_896,
    (SEResNeXt, 101): 48_955_416,
}


@pytest.mark.parametrize('cls, depth', PUBLISHED, ids=lambda value: getattr(value, '__name__', value))
def test_published_parameter_counts(cls, depth):
    classifier = 2048 * 1000 + 1000
    model = cls(depth)
    assert sum(p.numel() for p in model.parameters()) + classifier == PUBLISHED[cls, depth]
    weights = sum(p.numel() for n, p in model.named_parameters() if 'se_layer' in n and n.endswith('weight'))
    blocks = cls.arch_settings[depth][1]
    assert weights == 2 * sum(n * c * c for n, c in zip(blocks, (256, 512, 1024, 2048))) // 16


@pytest.mark.parametrize('ours, theirs', [(SEResNet, MMDetResNet), (SEResNeXt, MMDetResNeXt)])
def test_takes_all_of_mmdets_arguments_with_the_same_defaults(ours, theirs):
    def arguments(cls):
        parameters = {}
        for base in reversed(cls.__mro__):
            if '__init__' in vars(base) and base.__module__.split('.')[0] in ('mmdet', 'se_mm'):
                parameters.update(inspect.signature(base.__init__).parameters)
        return {name: p.default for name, p in parameters.items() if name not in ('self', 'kwargs')}

    mine, expected = arguments(ours), arguments(theirs)
    assert set(expected) <= set(mine)
    different = {name for name in expected if mine[name] != expected[name]}
    assert different == ({'groups'} if ours is SEResNeXt else set())  # 32x4d is the default


PLUGINS = [
    dict(cfg=dict(type='ContextBlock', ratio=1 / 4), stages=(False, True, True, True), position='after_conv3'),
    dict(cfg=dict(type='ContextBlock', ratio=1 / 2, postfix='_a'), position='after_conv1'),
    dict(cfg=dict(type='ContextBlock', ratio=1 / 2, postfix='_b'), position='after_conv2'),
]
DCN = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
VARIANTS = [
    dict(depth=18),
    dict(depth=34, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)),
    dict(depth=50, deep_stem=True, avg_down=True),
    dict(depth=50, style='caffe', num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 2), out_indices=(2, 0)),
    dict(depth=50, dcn=DCN, stage_with_dcn=(False, True, True, True)),
    dict(depth=50, plugins=PLUGINS),
    dict(depth=50, norm_cfg=dict(type='GN', num_groups=32)),
    dict(depth=50, in_channels=4, stem_channels=32, base_channels=16),
    dict(depth=50, groups=8, base_width=8),
    dict(depth=50, groups=1, base_width=128),  # which has no effect in either
    dict(depth=50, groups=32, base_width=4, dcn=DCN, stage_with_dcn=(False, True, True, True)),
    dict(depth=50, frozen_stages=2, norm_eval=True),
    dict(depth=50, with_cp=True),
]


@pytest.mark.parametrize('kwargs', VARIANTS, ids=lambda k: '-'.join(map(str, k)))
@pytest.mark.slow
def test_with_open_gates_it_is_mmdets_resnet(kwargs):
    """Gates at one turn SE into the identity: what is left has to be mmdet's network, trained alike."""
    init_default_scope('mmdet')
    theirs_cls, ours_cls = (MMDetResNeXt, SEResNeXt) if 'groups' in kwargs else (MMDetResNet, SEResNet)
    kwargs = dict(norm_eval=False) | kwargs
    theirs = theirs_cls(**{k: dict(v) if k == 'dcn' else v for k, v in kwargs.items()})
    randomize(theirs.double())
    ours = ours_cls(**kwargs).double()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected and all('se_layer' in name for name in missing)
    for module in ours.modules():
        if isinstance(module, SELayer):
            nn.init.zeros_(module.conv2.conv.weight)
            nn.init.constant_(module.conv2.conv.bias, 50.0)
    ours.train(), theirs.train()
    x = images(size=96)[:, :1].expand(-1, kwargs.get('in_channels', 3), -1, -1)
    se = [name for name, _ in ours.named_parameters() if 'se_layer' in name]
    if 'dcn' in kwargs:  # mmcv's CPU operator exists in single precision only
        with torch.no_grad():
            for model in (ours, theirs):
                model.float().train(False)
            for a, b in zip(ours(x.float()), theirs(x.float())):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        return
    assert_same(ours, theirs, x.requires_grad_(), ignore=se)
    frozen = {name for name, p in theirs.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in ours.named_parameters() if not p.requires_grad and name not in se}
    assert ours.feat_dim == theirs.feat_dim and ours.res_layers == theirs.res_layers


def test_dcn_falls_back_where_a_convolution_has_a_stride():
    model = SEResNet(50, dcn=dict(DCN, fallback_on_stride=True), stage_with_dcn=(False, True, True, True))
    kinds = [type(block.conv2).__name__ for block in model.layer2]
    assert kinds == ['Conv2d', *['ModulatedDeformConv2dPack'] * 3]


def test_stages_of_vgg():
    model = SEVGG(11, num_stages=3, base_channels=16, out_indices=(0, 2))
    shapes = [tuple(out.shape) for out in model(torch.rand(2, 3, 32, 32))]
    assert shapes == [(2, 16, 16, 16), (2, 64, 4, 4)]
    for kwargs, message in (
        (dict(num_stages=6), 'num_stages=6: choose 1 to 5'),
        (dict(num_stages=3, num_classes=2), 'num_stages=3: the fully connected layers'),
    ):
        with pytest.raises(ValueError, match=message):
            SEVGG(11, **kwargs)


def test_initialisation_is_mmdets():
    torch.manual_seed(0)
    model = SEResNet(50)
    model.init_weights()
    assert all(not block.bn3.weight.any() for block in model.layer2)
    assert all((block.bn2.weight == 1).all() for block in model.layer2)
    weight = model.layer3[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)  # He: fan_out of 256 x 3 x 3
    model = SEResNet(18, zero_init_residual=False)
    model.init_weights()
    assert (model.layer1[0].bn2.weight == 1).all()

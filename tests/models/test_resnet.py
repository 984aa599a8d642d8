import inspect

import pytest
import timm
import torch
from mmdet.models import ResNet as MMDetResNet
from mmdet.models import ResNeXt as MMDetResNeXt
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.models import SEResNet as MMPretrainSEResNet
from mmpretrain.models import SEResNeXt as MMPretrainSEResNeXt
from torch import nn

from se_mm.models import SEVGG, SELayer, SEResNet, SEResNeXt, SEShuffleNet
from se_mm.models.blocks import SEBasicBlock, SEBottleneck
from se_mm.models.se_layer import squeezed_width


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


def test_train_returns_self_and_keeps_frozen_parts_in_eval():
    model = SEResNet(18, frozen_stages=1, norm_eval=True)
    assert model.train() is model and model.eval() is model
    model.train()
    assert not model.layer1.training and model.layer2.training and not model.bn1.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(p.requires_grad for p in model.layer2.parameters())
    free = SEResNet(18, norm_eval=False).train()
    assert all(m.training for m in free.modules())


def test_recomputing_blocks_changes_no_gradient():
    plain, recomputed = SEResNet(18, norm_eval=False).double(), SEResNet(18, norm_eval=False, with_cp=True).double()
    recomputed.load_state_dict(randomize(plain).state_dict())
    assert_same(recomputed, plain, images().requires_grad_())


def test_drop_path_rate_rises_and_drops_whole_branches():
    model = randomize(SEResNet(18, drop_path_rate=0.4, norm_eval=False))
    rates = [getattr(block.drop_path, 'drop_prob', 0) for i in range(1, 5) for block in getattr(model, f'layer{i}')]
    assert rates == pytest.approx([0.4 * i / 7 for i in range(8)])
    block = model.layer4[1].train()
    block.drop_path.drop_prob = 0.5
    torch.manual_seed(0)
    x = torch.rand(64, 512, 2, 2)
    kept = (block(x) != x).flatten(1).any(1).sum().item()  # x is positive: without a branch, relu keeps it
    assert 16 < kept < 48


def test_squeezed_width_and_its_rounding():
    assert squeezed_width(64, 16) == 4 and squeezed_width(64, 16, 8) == 8
    assert squeezed_width(2048, 16) == squeezed_width(2048, 16, 8) == 128
    assert squeezed_width(10 * 8, 8, 8) == 16  # 10 rounds to 8, more than a tenth below
    exact, rounded = SEResNet(18), SEResNet(18, se_cfg=dict(divisor=8))
    assert exact.layer1[0].se_layer.conv1.conv.out_channels == 4
    assert rounded.layer1[0].se_layer.conv1.conv.out_channels == 8
    assert SEResNet(50, se_ratio=4).layer1[0].se_layer.conv1.conv.out_channels == 64


def test_se_layer_is_the_papers_equations():
    layer = randomize(SELayer(32, ratio=4).double())
    x = images(size=8)[:, :1].expand(-1, 32, -1, -1) * torch.arange(32).view(1, 32, 1, 1)
    z = x.mean((2, 3))
    w1, b1 = layer.conv1.conv.weight[:, :, 0, 0], layer.conv1.conv.bias
    w2, b2 = layer.conv2.conv.weight[:, :, 0, 0], layer.conv2.conv.bias
    s = torch.sigmoid((z @ w1.T + b1).relu() @ w2.T + b2)
    torch.testing.assert_close(layer(x), x * s[:, :, None, None])
    torch.testing.assert_close(layer.gates(x)[:, :, 0, 0], s)
    assert torch.equal(layer.scale(x), layer.gates(x))


@pytest.mark.parametrize('variant', ['standard', 'slow_excite'])
def test_gates_start_from_their_bias(variant):
    models = []
    for extra in ({}, dict(gate_bias=2.0)):
        torch.manual_seed(0)
        models.append(SEResNet(18, base_channels=32, se_cfg=dict(extra, variant=variant)))
        models[-1].init_weights()
    usual, model = models
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SELayer)}
    changed = set()
    for name, layer in layers.items():
        gates = layer.excite(torch.zeros(2, layer.conv1.conv.in_channels))
        torch.testing.assert_close(gates, torch.full_like(gates, 0.8808), rtol=0, atol=1e-4)
        changed.add(f'{name}.{layer.layers[-1]}.conv.bias')
    pairs = zip(usual.named_parameters(), model.parameters())
    assert {name for (name, before), after in pairs if not torch.equal(before, after)} == changed
    alone = SELayer(64, gate_bias=2.0)
    assert alone.conv2.conv.bias.eq(2).all()
    model.layer1[0].se_layer.conv1.conv.bias.data.fill_(5)
    model.init_weights()  # a second time does nothing
    assert model.layer1[0].se_layer.conv1.conv.bias.eq(5).all()


@pytest.mark.parametrize('size', [33, 64, 97])
@pytest.mark.parametrize('norm', [dict(type='BN'), dict(type='SyncBN'), dict(type='GN', num_groups=8), dict(type='IN')])
def test_sizes_and_norms(norm, size):
    model = SEResNet(18, norm_cfg=norm, base_channels=16).eval()
    outs = model(torch.rand(1, 3, size, size))
    for i, out in enumerate(outs):
        side = -(-size // 2 ** (i + 2))
        assert out.shape == (1, 16 * 2**i, side, side)


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(depth=51), ['SEResNet', '51', '[18, 34, 50, 101, 152]']),
        (dict(depth=50, num_stages=5), ['num_stages=5', '1 to 4']),
        (dict(depth=50, num_stages=0), ['num_stages=0', '1 to 4']),
        (dict(depth=50, num_stages='4'), ["num_stages='4'", '1 to 4']),
        (dict(depth=50, expansion=0), ['expansion=0', 'from 1']),
        (dict(depth=18, expansion=2), ['expansion=2', '18 and 34']),
        (dict(depth=50, se_cfg=dict(squeeze_channels=-1)), ['squeeze_channels=-1', 'from 1']),
        (dict(depth=50, se_cfg=dict(squeeze_channels='32')), ["squeeze_channels='32'", 'from 1']),
        (dict(depth=50, plugins=[dict(PLUGINS[0], stages=(True,))]), ['plugin stages=(True,)', 'num_stages=4']),
        (dict(depth=50, with_se=(True, False)), ['with_se=(True, False)', 'num_stages=4']),
        (dict(depth=50, se_position='top'), ['top', "'pre'"]),
        (dict(depth=50, num_stages=3, out_indices=(2,)), ['strides=(1, 2, 2, 2)', 'num_stages=3']),
        (
            dict(depth=50, num_stages=2),
            ['num_stages=2', 'strides=', 'dilations=', '2 entries', 'out_indices=', '0 to 1'],
        ),
        (dict(depth=50, se_cfg=dict(act_cfg=dict(type='ReLU'))), ['act_cfg=', 'two configs']),
        (dict(depth=50, out_indices=(4,)), ['out_indices=(4,)', '0 to 3']),
        (dict(depth=50, out_indices=()), ['out_indices=()', '0 to 3']),
        (dict(depth=50, frozen_stages=5), ['frozen_stages=5', '-1 to 4']),
        (dict(depth=50, style='tensorflow'), ['tensorflow', "'pytorch' or 'caffe'"]),
        (dict(depth=50, drop_path_rate=1.0), ['drop_path_rate=1.0']),
        (dict(depth=50, fused_se='cuda'), ["fused_se='cuda'", "'torch', 'triton'"]),
        (dict(depth=50, se_ratio=0), ['se_ratio=0', 'from 1']),
        (dict(depth=50, se_ratio=512), ['se_ratio=512', '1 to 256']),
        (dict(depth=18, dcn=DCN, stage_with_dcn=(True,) * 4), ['dcn', '18', '50, 101 or 152']),
        (dict(depth=18, plugins=PLUGINS[:1]), ['after_conv3', 'after_conv1']),
        (dict(depth=50, plugins=[dict(cfg=dict(type='ContextBlock', ratio=1), position='x')]), ["'x'", 'after_conv1']),
        (dict(depth=50, dcn=DCN, stage_with_dcn=(True,)), ['stage_with_dcn=(True,)', 'num_stages=4']),
        (dict(depth=50, init_cfg=dict(type='Normal', layer='Conv2d'), pretrained='x'), ['init_cfg', 'pretrained']),
    ],
    ids=lambda value: '-'.join(map(str, value)) if isinstance(value, dict) else '',
)
def test_mistakes_are_named_with_the_choices(kwargs, words):
    with pytest.raises(ValueError) as error:
        SEResNet(**kwargs)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(), 'give channels'),
        (dict(channels=64, in_channels=64), 'give channels'),
        (dict(channels=0), 'channels=0: choose a whole number from 1'),
        (dict(in_channels=6.5), 'channels=6.5: choose'),
        (dict(channels=64, ratio='16'), "se_ratio='16': choose"),
        (dict(channels=64, divisor=0), 'divisor=0: choose'),
        (dict(channels=64, squeeze_channels=True), 'squeeze_channels=True: choose'),
        (dict(channels=64, bias=False, gate_bias=2.0), 'there are no biases'),
        (dict(channels=64, act_cfg=None), 'give two configs'),
        (dict(channels=64, act_cfg=('ReLU', 'Sigmoid')), 'give two configs'),
    ],
    ids=str,
)
def test_mistakes_in_se_layers_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SELayer(**kwargs)


def test_pretrained_has_to_be_a_path():
    with pytest.raises(TypeError, match='pretrained=0: give the path of a checkpoint'):
        SEResNet(50, pretrained=0)


@pytest.mark.parametrize('block', [SEBasicBlock, SEBottleneck])
def test_mistakes_in_blocks_are_named(block):
    with pytest.raises(ValueError, match="style='tensorflow': choose 'pytorch' or 'caffe'"):
        block(64, 64, style='tensorflow')
    with pytest.raises(ValueError, match="expansion='2': choose a whole number"):
        block(64, 64, expansion='2')


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


def test_attributes_have_the_names_of_openmmlab():
    """Of mmdet's ResNet and of mmpretrain's blocks; tools and tests of both look at them."""
    model = SEResNet(50, base_channels=16, expansion=2, with_cp=True, avg_down=True)
    assert (model.stem_channels, model.base_channels, model.expansion, model.avg_down) == (16, 16, 2, True)
    assert SEResNet(18, stem_channels=8).stem_channels == 8
    first, second = model.layer2[:2]
    assert (first.in_channels, first.mid_channels, first.out_channels, first.expansion) == (32, 32, 64, 2)
    assert (second.in_channels, second.mid_channels, second.out_channels) == (64, 32, 64)
    assert first.with_cp and not any(block.with_cp for block in SEResNet(18).layer1)
    shuffle = SEShuffleNet(3)
    assert shuffle.stage1[0].first_block and not shuffle.stage2[0].first_block


def test_blocks_alone_can_be_recomputed():
    """Recomputing is each block's own choice."""
    model = randomize(SEResNet(18, norm_eval=False).double())
    calls = []
    for block in model.layer2:
        block.conv1.register_forward_hook(lambda *_: calls.append(1))
    model.layer2[1].with_cp = True
    sum(out.sum() for out in model(images().requires_grad_())).backward()
    assert len(calls) == 3


def test_seresnext_has_no_shallow_depths():
    with pytest.raises(ValueError, match=r'SEResNeXt has no depth 18: choose one of \[50, 101, 152\]'):
        SEResNeXt(18)


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


def test_frozen_random_weights_are_reported(caplog):
    MMLogger.get_current_instance().addHandler(caplog.handler)
    for kwargs, expected in ((dict(), 'norm_eval'), (dict(norm_eval=False, frozen_stages=1), 'frozen_stages')):
        caplog.clear()
        SEResNet(18, **kwargs).init_weights()
        assert expected in caplog.text and 'random weights' in caplog.text
    caplog.clear()
    SEResNet(18, norm_eval=False).init_weights()
    assert 'random weights' not in caplog.text


def test_pretrained_checkpoint_is_loaded(tmp_path):
    source = randomize(SEResNet(18))
    weights = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.')
    model = SEResNet(18, init_cfg=cfg)
    model.init_weights()
    for (name, a), b in zip(model.state_dict().items(), source.state_dict().values()):
        torch.testing.assert_close(a, b, msg=name)

"""What every backbone has to do, tried on a tiny variant of each family."""

import copy
import math

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import create_feature_extractor

from se_mm.models import BACKBONES, SELayer
from se_mm.models.blocks import SE_POSITIONS
from se_mm.models.fresh_se import start_as_identity
from se_mm.models.se_layer import VARIANTS
from se_mm.registry import MODELS
from se_mm.utils import InputError

RESNET = dict(base_channels=16, norm_eval=False, zero_init_residual=False)
TINY = {
    'SEResNet': dict(type='SEResNet', depth=18, **RESNET),
    'SEResNet-bottleneck': dict(type='SEResNet', depth=50, num_stages=2, strides=(1, 2), dilations=(1, 1), **RESNET),
    'SEResNeXt': dict(type='SEResNeXt', depth=50, groups=4, num_stages=2, strides=(1, 2), dilations=(1, 1), **RESNET),
    'SENet': dict(type='SENet', groups=4, stem_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), **RESNET),
    'SEBNInception': dict(type='SEBNInception', width=0.25, out_indices=(0, 1, 2)),
    'SEInceptionResNetV2': dict(type='SEInceptionResNetV2', width=0.25, blocks=(1, 1, 2), out_indices=(0, 1, 2)),
    'SEVGG': dict(type='SEVGG', depth=11, base_channels=16, out_indices=(0, 1, 2, 3, 4)),
    'SEMobileNet': dict(type='SEMobileNet', widen_factor=0.25, out_indices=(0, 1, 2, 3, 4)),
    'SEShuffleNet': dict(type='SEShuffleNet', widen_factor=0.5, out_indices=(0, 1, 2)),
    'SEResNetCIFAR-basic': dict(type='SEResNetCIFAR', arch=dict(block='basic', blocks=2, width=16)),
    'SEResNetCIFAR-preact': dict(type='SEResNetCIFAR', arch=dict(block='preact', blocks=2, width=32)),
    'SEResNetCIFAR-bottleneck': dict(type='SEResNetCIFAR', arch=dict(block='preact_bottleneck', blocks=2, width=64)),
    'SEShakeShake': dict(type='SEShakeShake', arch=dict(blocks=1, width=16, groups=None, even=False)),
    'SECNN': dict(type='SECNN', num_classes=None),
}
for _cfg in TINY.values():
    if _cfg['type'] in ('SEResNet', 'SEResNeXt', 'SENet'):
        _cfg.setdefault('out_indices', tuple(range(_cfg.get('num_stages', 4))))
    elif _cfg['type'] in ('SEResNetCIFAR', 'SEShakeShake'):
        _cfg['out_indices'] = (0, 1, 2)
STRIDES = dict(
    SEBNInception=(8, 16, 32), SEVGG=(2, 4, 8, 16, 32), SEMobileNet=(2, 4, 8, 16, 32), SEShuffleNet=(8, 16, 32),
    SEResNetCIFAR=(1, 2, 4), SEResNet=(4, 8, 16, 32), SEResNeXt=(4, 8), SECNN=(4,), SEShakeShake=(1, 2, 4),
)  # fmt: skip


def build(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = MODELS.build({**TINY[name], **kwargs, 'type': f'se_mm.{TINY[name]["type"]}'})
    model.init_weights()
    return model


def image(batch=2, height=96, width=96, dtype=torch.float32, seed=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss_of(outs):
    return sum(out.square().mean() for out in outs)


@pytest.fixture(params=TINY)
def name(request):
    return request.param


def test_all_families_are_tried_and_registered():
    assert {cfg['type'] for cfg in TINY.values()} == {cls.__name__ for cls in BACKBONES}
    for cls in BACKBONES:
        assert MODELS.get(cls.__name__) is cls and ROOT_MODELS.get(cls.__name__) is cls


@pytest.mark.parametrize('size', [(97, 131), (110, 75)])
def test_odd_sizes_layouts_and_single_images(name, size):
    model = build(name).double().eval()
    x = image(1, *size, dtype=torch.float64)
    with torch.no_grad():
        outs = model(x)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert len(outs) == len(model.out_indices)
    for a, b in zip(outs, last):
        assert a.isfinite().all() and a.std() > 0
        torch.testing.assert_close(a, b)
    strides = STRIDES.get(TINY[name]['type'])  # two families pool the stem without padding
    floors = TINY[name]['type'] in ('SEVGG', 'SECNN')  # whose pools round down
    for out, stride in zip(outs, strides or ()):
        assert out.shape[2:] == tuple((n // stride) if floors else math.ceil(n / stride) for n in size)


def test_autocast_keeps_close(name):
    model = build(name).eval()
    x = image(1)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            outs = model(x)
    for a, b in zip(outs, exact):
        assert (a.float() - b).norm() < 0.1 * b.norm()
    with torch.autocast('cpu', torch.bfloat16):
        loss_of(out.float() for out in model.train()(image(2))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
def test_compiled_in_one_graph_and_traced(name):
    torch.compiler.reset()  # all networks share one forward, which may be compiled a few times only
    model = build(name).double().eval()
    x = image(2, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend='aot_eager', fullgraph=True)(x)
        traced = torch.jit.trace(model, x)(x)
    for a, b, c in zip(expected, compiled, traced):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize('training', [True, False])
def test_symbolic_traces_compute_the_same(name, training):
    model = build(name, se_ratio=4).double().train(training)
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert set(traced.state_dict()) == set(model.state_dict())
    x = image(2, 96, 96, dtype=torch.float64)
    results = []
    for module in (model, traced):
        torch.manual_seed(2)  # of mixed branches
        outs = module(x)
        loss_of(outs).backward()
        results.append([*outs, *(p.grad for _, p in sorted(module.named_parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    for key, value in traced.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key])


def test_features_of_torchvisions_extractor(name):
    model = build(name).double().eval()
    stages = [model.stage_names[i] for i in model.out_indices]
    extractor = create_feature_extractor(model, stages).eval()
    x = image(1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        for stage, out in zip(stages, model(x), strict=True):
            torch.testing.assert_close(extractor(x)[stage], out)


@pytest.mark.parametrize('name, kwargs, size', [
    *(('SEResNet-bottleneck', dict(se_position=position), 96) for position in SE_POSITIONS),
    ('SEResNet-bottleneck', dict(fused_se='torch', with_cp=True, deep_stem=True), 96),
    ('SEResNet', dict(se_cfg=dict(squeeze='none')), 96),
    ('SEVGG', dict(num_classes=4, out_indices=None), 224),
    ('SECNN', dict(num_classes=4), 32),
], ids=str)  # fmt: skip
def test_symbolic_traces_of_options(name, kwargs, size):
    model = build(name, **kwargs).double().train()
    traced = torch.fx.symbolic_trace(model)
    x = image(2, size, size, dtype=torch.float64)
    outs = []
    for module in (model, traced):
        torch.manual_seed(2)  # of dropout
        outs.append(module(x))
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_recomputed_activations_give_the_same_gradients(name):
    x = image(2, 96, 96, dtype=torch.float64)
    grads = []
    for with_cp in (False, True):
        model = build(name, with_cp=with_cp).double().train()
        loss_of(model(x.clone().requires_grad_())).backward()
        grads.append({key: p.grad for key, p in model.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad)


def test_frozen_parts_stay(name):
    model = build(name, frozen_stages=1, norm_eval=True).train()
    frozen = [*model.stem_modules(), getattr(model, model.stage_names[0])]
    assert not any(p.requires_grad for part in frozen for p in part.parameters())
    assert not any(module.training for part in frozen for module in part.modules())
    assert not any(module.training for module in model.modules() if isinstance(module, _BatchNorm))
    before = copy.deepcopy(model.state_dict())
    if any(p.requires_grad for p in model.parameters()):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        loss_of(model(image(2))).backward()
        optimizer.step()
    for key, value in model.state_dict().items():
        trained = not any(key.startswith(f'{stage}.') for stage in ('stem', 'conv1', 'bn1', model.stage_names[0]))
        if 'running' in key or not trained:
            assert torch.equal(value, before[key]), key


def test_layers_rise_with_depth(name):
    """For layer-wise decay of learning rates: stem, stages in layers of a few blocks, head."""
    model = build(name)
    layers = [model.get_layer_depth(f'backbone.{key}', 'backbone.') for key, _ in model.named_parameters()]
    number = len({0, *(layer for layer, _ in layers)})
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (number, number + 1)
    assert layers == sorted(layers) and {total for _, total in layers} == {number + 1}
    assert model.get_layer_depth(f'{model.stage_names[0]}.0.conv.weight')[0] == 1
    assert model.get_layer_depth('stem.0.weight')[0] == 0


@pytest.mark.slow
def test_training_lowers_a_loss_and_reaches_all_parameters(name):
    model = build(name, se_ratio=4).train()
    head = nn.LazyLinear(4)
    x, labels = image(8, 96, 96), torch.arange(8) % 4

    def loss():
        return nn.functional.cross_entropy(head(model(x)[-1].mean((2, 3))), labels)

    first = loss()
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    first.backward()
    missing = {key for key, p in model.named_parameters() if p.grad is None}
    assert not missing
    assert any(isinstance(module, SELayer) for module in model.modules())
    for _ in range(10):
        optimizer.step()
        optimizer.zero_grad()
        last = loss()
        last.backward()
    assert last < first
    zero = [key for key, p in model.named_parameters() if 'se_layer' in key and not p.grad.any()]
    # a squeezed channel may rest below its ReLU for all images; a whole layer may not
    assert not [key for key in zero if 'conv2' in key], zero


@pytest.mark.parametrize('name', [name for name in TINY if name != 'SECNN'])  # where SE replaces a convolution
def test_plain_twin(name):
    """The same network without SE: nothing but SE layers are missing, and nothing else is different."""
    se, plain = build(name), build(name, with_se=False)
    assert not any(isinstance(module, SELayer) for module in plain.modules())
    state = se.state_dict()
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert shapes == {key: value.shape for key, value in state.items() if 'se_layer' not in key}
    # gates of one make the SE network the plain one
    for module in se.modules():
        if isinstance(module, SELayer):
            nn.init.zeros_(module.conv2.conv.weight)
            nn.init.constant_(module.conv2.conv.bias, 100)
    plain.load_state_dict({key: state[key] for key in shapes})
    se.double().eval(), plain.double().eval()
    x = image(1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(se(x), plain(x)):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', [name for name in TINY if name != 'SECNN'])  # which has one stage
def test_se_in_chosen_stages(name):
    stages = len(build(name).stage_names)
    chosen = (False,) * (stages - 1) + (True,)
    model = build(name, with_se=chosen)
    for stage, has_se in zip(model.stage_names, chosen):
        assert any(isinstance(module, SELayer) for module in getattr(model, stage).modules()) == has_se
    with pytest.raises(ValueError, match='with_se'):
        build(name, with_se=(True,))


@pytest.mark.parametrize(
    'se_cfg', [dict(variant=v) for v in VARIANTS] + [dict(squeeze='max'), dict(squeeze='none')], ids=str
)
def test_variants_of_the_layer(name, se_cfg):
    model = build(name, se_cfg=se_cfg, se_ratio=8)
    layers = [module for module in model.modules() if isinstance(module, SELayer)]
    widths = VARIANTS[se_cfg.get('variant', 'standard')]
    for layer in layers:
        convs = [getattr(layer, key).conv for key in layer.layers]
        channels = convs[0].in_channels
        assert [conv.out_channels for conv in convs] == [*(w * (channels // 8) for w in widths), channels]
    loss_of(model.train()(image(2, 96, 96))).backward()
    assert all(p.grad is not None for layer in layers for p in layer.parameters())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(out_indices=(9,)), 'out_indices'),
        (dict(frozen_stages=9), 'frozen_stages'),
        (dict(se_cfg=dict(variant='deep')), 'variant'),
        (dict(se_cfg=dict(squeeze='min')), 'squeeze'),
        (dict(se_ratio=100000), 'se_ratio'),
        (dict(se_cfg=dict(ratio=8)), 'give it as se_ratio'),
        (dict(se_cfg=dict(act_cfg=dict(type='ReLU'))), 'two configs'),
    ],
    ids=str,
)
def test_bad_arguments(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(name, **kwargs)


def with_plain_weights(name, path, **kwargs):
    """A plain network, and the same with SE that starts as the identity beside its weights."""
    plain = build(name, with_se=False, **kwargs)
    for module in plain.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    torch.save(plain.state_dict(), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), fresh_se='identity')
    return plain.double().eval(), build(name, seed=1, init_cfg=init_cfg, **kwargs).double().eval()


@pytest.mark.parametrize('name', [name for name in TINY if name not in ('SECNN', 'SEBNInception')])
def test_fresh_se_starts_as_the_identity(name, tmp_path):
    plain, se = with_plain_weights(name, tmp_path / 'plain.pth')
    x = image(1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(se(x), plain(x), strict=True):
            torch.testing.assert_close(a, b)
    loss_of(se(x)).backward()
    for module in se.modules():
        if isinstance(module, SELayer):
            assert module.conv2.conv.bias.grad.any()


@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('SEResNet-bottleneck', dict(se_position='3x3')),
        ('SEVGG', dict(norm_cfg=None)),
        ('SEMobileNet', dict(norm_cfg=dict(type='GN', num_groups=4))),
    ],
)
def test_fresh_se_starts_as_the_identity_after_other_layers(name, kwargs, tmp_path):
    plain, se = with_plain_weights(name, tmp_path / 'plain.pth', **kwargs)
    x = image(1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(se(x), plain(x), strict=True):
            torch.testing.assert_close(a, b)


PLUGIN = dict(cfg=dict(type='ContextBlock', ratio=1 / 4), position='after_conv2')


@pytest.mark.parametrize(
    'name, kwargs, layer',
    [
        ('SEBNInception', dict(), r'stage2.0.se_layer, stage3\.0\.se_layer'),  # of units that pass pooled input on
        ('SEResNet', dict(se_position='post'), 'layer1.0.se_layer'),
        ('SEResNet', dict(plugins=[PLUGIN]), 'layer1.0.se_layer'),
        ('SEMobileNet', dict(se_cfg=dict(act_cfg=(dict(type='ReLU'), dict(type='Tanh')))), 'stage1.0.se_layer'),
        ('SEShuffleNet', dict(norm_cfg=dict(type='IN', affine=False)), 'stage1.0.se_layer'),
        ('SECNN', dict(), 'stage1.0'),
    ],
)
def test_where_fresh_se_cannot_start_as_the_identity(name, kwargs, layer):
    model = build(name, **kwargs)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=rf"fresh_se='identity': {layer}.* cannot start as ") as error:
        start_as_identity(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if name == 'SEBNInception':
        assert 'Set with_se=(True, False, False), or leave' in str(error.value)
        start_as_identity(build(name, with_se=(True, False, False)))


@pytest.mark.parametrize('name', ['SEResNet', 'SENet', 'SEInceptionResNetV2', 'SEShuffleNet', 'SEResNetCIFAR-basic'])
def test_fused_and_not(name):
    """Outputs and gradients of residual networks with the fused tail and without it."""
    x = image(2, 96, 96, dtype=torch.float64)
    results = []
    for fused_se in ('torch', False):
        model = build(name, fused_se=fused_se).double().train()
        outs = model(x)
        loss_of(outs).backward()
        results.append((outs, {key: p.grad for key, p in model.named_parameters()}))
    for a, b in zip(results[0][0], results[1][0]):
        torch.testing.assert_close(a, b)
    for key, grad in results[1][1].items():
        torch.testing.assert_close(results[0][1][key], grad, rtol=1e-6, atol=1e-9 * grad.abs().max().item() + 1e-12)
    with pytest.raises(ValueError, match='fused_se'):
        build(name, fused_se='cuda')


def test_folding_of_batch_norm(name):
    model = build(name).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = image(1)
    with torch.no_grad():
        expected = model.double()(x.double())
        folded = fuse_conv_bn(copy.deepcopy(model))(x.double())
    for a, b in zip(folded, expected):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('gate', ['Sigmoid', 'ReLU', 'Tanh'])
@pytest.mark.parametrize('zero_init', [True, False])
def test_gates_train(gate, zero_init):
    """Every branch learns; with norms and gates that both start at 0 none would, which is refused."""
    options = dict(se_cfg=dict(act_cfg=(dict(type='ReLU'), dict(type=gate))), zero_init_residual=zero_init, se_ratio=4)
    if zero_init and gate != 'Sigmoid':
        with pytest.raises(ValueError, match='zero_init_residual=False'):
            build('SEResNet', **options)
        return
    model = build('SEResNet', **options).train()
    # nothing starts at zero by an init_cfg
    build('SEResNet', **dict(options, zero_init_residual=True), init_cfg=dict(type='Kaiming', layer='Conv2d'))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        sum((out * out.detach().sin()).mean() for out in model(image(4))).backward()
        optimizer.step()
    dead = [key for key, p in model.named_parameters() if key.endswith('conv2.weight') and not p.grad.any()]
    assert not dead


def test_blocks_are_recomputed():
    """Also the first one of a network without stem, whose input needs no gradient."""
    model = build('SEVGG', with_cp=True).train()
    calls = []
    for module in model.modules():
        if isinstance(module, SELayer):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_of(model(image(1))).backward()
    assert len(calls) == 2 * sum(isinstance(module, SELayer) for module in model.modules())


def test_positions():
    """Where SE stands, from the units of one network with the same weights."""
    x = image(1, 64, 64, dtype=torch.float64)
    for position in SE_POSITIONS:
        model = build('SEResNet-bottleneck', se_position=position).double().eval()
        block = model.layer1[1]
        features = model.layer1[0](model.run_stem(x))
        se = block.se_layer
        branch, shortcut = features, features
        branch = se(branch) if position == 'pre' else branch
        branch = block.norm1(block.conv1(branch)).relu()
        branch = block.norm2(block.conv2(branch)).relu()
        branch = se(branch) if position == '3x3' else branch
        branch = block.norm3(block.conv3(branch))
        branch = se(branch) if position == 'standard' else branch
        shortcut = se(shortcut) if position == 'identity' else shortcut
        expected = (branch + shortcut).relu()
        expected = se(expected) if position == 'post' else expected
        torch.testing.assert_close(block(features), expected)
        assert (block.why_not_fused() is None) == (position == 'standard')
    with pytest.raises(ValueError, match='se_position'):
        build('SEResNet', se_position='middle', with_se=False)
    with pytest.raises(ValueError, match='bottlenecks'):
        build('SEResNet', se_position='3x3')

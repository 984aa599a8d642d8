"""Deployed networks against the networks as they were trained."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.logging import MMLogger
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from se_mm.analysis.gates import GateRecorder
from se_mm.models import SELayer
from se_mm.models.deploy import FOLDED, MOVED, STAYS
from se_mm.models.se_layer import VARIANTS
from zoo import TINY, build, image

# Networks whose units end in a 1x1 convolution and a sum or a concatenation.
POINTWISE = (
    'SEResNet-bottleneck', 'SEResNeXt', 'SENet', 'SEInceptionResNetV2', 'SEShuffleNet', 'SEResNetCIFAR-bottleneck'
)  # fmt: skip


def trained(name, **kwargs):
    """A network in evaluation mode with random parameters and statistics of its batch norms."""
    model = build(name, **kwargs)
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def deployed(model, *args):
    """A deployed copy, and what became of its norms and SE layers."""
    model = copy.deepcopy(model)
    return model, model.switch_to_deploy(*args)


def outputs(model, x):
    torch.manual_seed(4)  # of mixed branches in training
    with torch.no_grad():
        return model(x)


def difference(outs, expected):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(outs, expected, strict=True))


@pytest.mark.parametrize('name', TINY)
@pytest.mark.parametrize('batch, height, width', [(3, 96, 96), (1, 97, 131)])
def test_same_features(name, batch, height, width):
    model = trained(name).double()
    network, report = deployed(model)
    x = image(batch, height, width, dtype=torch.float64)
    assert difference(outputs(network, x), outputs(model, x)) < 1e-10
    x, network = x.to(memory_format=torch.channels_last), network.to(memory_format=torch.channels_last)
    assert difference(outputs(network, x), outputs(model, x)) < 1e-10
    se = {row.done for row in report if row.kind == 'SE'}
    assert se == ({MOVED} if name in POINTWISE else {STAYS})
    first_norms_stay = name in ('SEResNetCIFAR-preact', 'SEResNetCIFAR-bottleneck')
    assert any(isinstance(module, _BatchNorm) for module in network.modules()) == first_norms_stay
    assert all(row.why for row in report if row.done == STAYS)


@pytest.mark.parametrize('name', POINTWISE)
@pytest.mark.parametrize('se_cfg', [*(dict(variant=variant) for variant in VARIANTS), dict(bias=False)], ids=str)
def test_variants_of_se(name, se_cfg):
    model = trained(name, se_cfg=se_cfg).double()
    network, report = deployed(model)
    x = image(2, 96, 96, dtype=torch.float64)
    assert difference(outputs(network, x), outputs(model, x)) < 1e-10
    assert {row.done for row in report if row.kind == 'SE'} == {MOVED}


@pytest.mark.parametrize('name', TINY)
def test_rounding_in_single_precision(name):
    """Folding rounds all weights once more, which the bound allows for: an error is the root of the mean square."""
    model = trained(name)
    x = image(4, 96, 96)
    (*_, exact) = outputs(copy.deepcopy(model).double(), x.double())

    def rounding(network):
        return (outputs(network, x)[-1] - exact).square().mean().sqrt()

    assert rounding(deployed(model)[0]) < 2 * rounding(model)


@pytest.mark.parametrize('name', TINY)
def test_autocast(name):
    model = trained(name)
    network, _ = deployed(model)
    x = image(2, 96, 96)
    with torch.autocast('cpu', torch.bfloat16):
        expected, outs = outputs(model, x), outputs(network, x)
    assert [out.dtype for out in outs] == [out.dtype for out in expected]
    exact = outputs(model, x)
    assert difference([out.float() for out in outs], exact) < 2 * difference([o.float() for o in expected], exact)


@pytest.mark.parametrize('name', TINY)
def test_weights_load_into_a_network_that_is_built_deployed(name):
    model, _ = deployed(trained(name))
    network = build(name, deploy=True)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    network.load_state_dict(model.state_dict(), strict=True)
    x = image(1, 96, 96)
    assert all(torch.equal(a, b) for a, b in zip(outputs(network, x), outputs(model, x), strict=True))


def test_is_not_trained(caplog):
    MMLogger.get_current_instance().addHandler(caplog.handler)
    model = build('SEResNet-bottleneck')
    assert model.switch_to_deploy() == [] and not model.deployed
    assert 'training mode' in caplog.text and 'call eval()' in caplog.text
    assert any(isinstance(module, _BatchNorm) for module in model.modules())
    model.eval().switch_to_deploy()
    with pytest.raises(RuntimeError, match='deployed, and cannot be trained'):
        nn.Sequential(model).train()
    model.eval()
    assert model.switch_to_deploy() == []


@pytest.mark.parametrize(
    'options, why',
    [
        (dict(se_position='pre'), "se_position='pre'"),
        (dict(se_position='post'), "se_position='post'"),
        (dict(se_position='identity'), "se_position='identity'"),
        (dict(se_position='3x3'), "se_position='3x3'"),
        (dict(se_cfg=dict(squeeze='max')), 'SE squeezes by AdaptiveMaxPool2d'),
        (dict(se_cfg=dict(squeeze='none')), 'SE squeezes by Identity'),
        (dict(norm_cfg=dict(type='GN', num_groups=4)), 'GroupNorm stands before SE'),
        (
            dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv3')]),
            'plugins stand between',
        ),
    ],
    ids=str,
)
def test_what_depends_on_more_than_means_stays(options, why):
    model = trained('SEResNet-bottleneck', **options).double()
    network, report = deployed(model)
    x = image(2, 96, 96, dtype=torch.float64)
    assert difference(outputs(network, x), outputs(model, x)) < 1e-10
    assert all(row.done == STAYS and why in row.why for row in report if row.kind == 'SE')


def test_changed_modules_stay():
    model = trained('SEResNet-bottleneck').double()
    first, second = model.layer1[0], model.layer1[1]
    nn.utils.parametrizations.weight_norm(first.conv1)
    seen = []
    first.bn2.register_forward_hook(lambda *_: seen.append('norm'))
    second.conv3.register_forward_hook(lambda *_: seen.append('conv'))
    network, report = deployed(model)
    x = image(2, 96, 96, dtype=torch.float64)
    expected = outputs(model, x)
    seen.clear()
    assert difference(outputs(network, x), expected) < 1e-10 and seen == ['norm', 'conv']
    stay = {row.path: row.why for row in report if row.done == STAYS}
    assert set(stay) == {'layer1.0.bn1', 'layer1.0.bn2', 'layer1.1.bn3', 'layer1.1.se_layer'}, stay
    assert 'no ordinary convolution' in stay['layer1.0.bn1'] and 'hooks' in stay['layer1.1.bn3']


@pytest.mark.parametrize(
    'name', ['SEResNet', 'SEResNet-bottleneck', 'SEInceptionResNetV2', 'SEVGG', 'SEBNInception', 'SEShakeShake']
)
def test_constant_gates(name):
    model = trained(name).double()
    layers = [path for path, module in model.named_modules() if isinstance(module, SELayer)]
    constant = layers[1::2]
    generator, gates = torch.Generator().manual_seed(3), {}
    for path in constant:  # gates that do not depend on the image
        last = getattr(model.get_submodule(path), model.get_submodule(path).layers[-1]).conv
        last.weight.data.zero_()
        gates[path] = torch.rand(len(last.bias), generator=generator, dtype=torch.float64) * 0.8 + 0.1
        last.bias.data.copy_(gates[path].logit())
    network, report = deployed(model, gates)
    x = image(2, 96, 96, dtype=torch.float64)
    folded = {row.path for row in report if row.kind == 'SE' and row.done == FOLDED}
    passed_on = {f'stage{2 + i}.0.se_layer' for i in range(2)}  # of units that pass pooled input on
    assert folded == set(constant) - (passed_on if name == 'SEBNInception' else set())
    assert difference(outputs(network, x), outputs(model, x)) < 1e-10
    again = build(name, deploy=True, with_se=network.with_se).double()
    again.load_state_dict(network.state_dict(), strict=True)
    assert difference(outputs(again, x), outputs(model, x)) < 1e-10

    ordinary = copy.deepcopy(model)  # without deploying, the network can be trained
    assert {row.path for row in ordinary.fold_gates(gates) if row.done == FOLDED} == folded
    again = build(name, with_se=ordinary.with_se).double()
    again.load_state_dict(ordinary.state_dict(), strict=True)
    assert difference(outputs(again.eval(), x), outputs(model, x)) < 1e-10
    assert difference(outputs(again.train(), x), outputs(model.train(), x)) < 1e-10


def test_wrong_constant_gates():
    model = trained('SEResNet-bottleneck')
    with pytest.raises(ValueError, match='layer1.0.conv1 is no SE layer'):
        deployed(model, {'layer1.0.conv1': torch.ones(64)})
    with pytest.raises(ValueError, match='3 gates for the 64 channels of layer1.0.se_layer'):
        deployed(model, {'layer1.0.se_layer': torch.ones(3)})
    network, report = deployed(model, {'layer1.0.se_layer': -torch.ones(64)})
    (row,) = (row for row in report if row.path == 'layer1.0.se_layer')
    assert row.done == MOVED and 'below 0' in row.why


def test_recorded_gates_are_those_of_the_trained_network():
    model = trained('SEResNeXt').double()
    network, _ = deployed(model)
    gates = []
    for each in (model, network):
        with GateRecorder(each) as recorder, torch.no_grad():
            each(image(2, 96, 96, dtype=torch.float64))
            gates.append(recorder.take())
    assert gates[0].keys() == gates[1].keys() and len(gates[0]) == 7
    for name, expected in gates[0].items():
        torch.testing.assert_close(gates[1][name].mean, expected.mean, rtol=1e-10, atol=0)


def test_export():
    network, _ = deployed(trained('SEResNeXt'))
    x = image(2, 96, 96)
    program = torch.export.export(network, (x,)).module()
    assert difference(outputs(program, x), outputs(network, x)) < 1e-5


def test_convolutions_of_modules_have_no_norm_left():
    network, _ = deployed(trained('SEMobileNet'))
    modules = [module for module in network.modules() if isinstance(module, ConvModule)]
    assert modules and not any(module.with_norm or module.norm for module in modules)


@pytest.mark.parametrize('name', ['SEResNet', 'SEShuffleNet', 'SEVGG', 'SEResNetCIFAR-preact'])
def test_units_without_se(name):
    whole = build(name)
    units = tuple(whole._units_with_se[stage] for stage in range(whole.num_stages))
    with_se = (True, *(tuple(i % 2 == 1 for i in range(n)) for n in units[1:]))
    model = build(name, with_se=with_se)
    left = [path for path, module in model.named_modules() if isinstance(module, SELayer)]
    assert len(left) == units[0] + sum(n // 2 for n in units[1:])
    missing = set(whole.state_dict()) - set(model.state_dict())
    assert missing and all('se_layer' in key for key in missing) and set(model.state_dict()) < set(whole.state_dict())
    with pytest.raises(ValueError, match=rf'with_se\[1\]=.* needs {units[1]} entries'):
        build(name, with_se=(True, (True,) * (units[1] + 1), *units[2:]))


def plugin(position, **cfg):
    return dict(plugins=[dict(cfg=dict(type='se_mm.SELayer', ratio=4, **cfg), position=position)])


def test_se_of_plugins_stays():
    model = trained('SEResNet-bottleneck', **plugin('after_conv2', postfix=2)).double()
    network, report = deployed(model)
    x = image(2, 96, 96, dtype=torch.float64)
    assert difference(outputs(network, x), outputs(model, x)) < 1e-10
    done = {row.path.split('.')[-1]: row.done for row in report if row.kind == 'SE'}
    assert done == {'se_layer': MOVED, 'se_layer2': STAYS}
    with pytest.raises(ValueError, match='a plugin is named se_layer.*postfix'):
        build('SEResNet-bottleneck', **plugin('after_conv2'))


@pytest.mark.parametrize(
    'options',
    [dict(se_cfg=dict(act_cfg=(dict(type='ReLU'), dict(type='Tanh')))), dict(norm_cfg=dict(type='BN', affine=False))],
    ids=['gates below 0', 'no weights'],
)
def test_gates_that_cannot_be_folded_squeeze_before(options):
    model = build('SEResNet-bottleneck', **options).eval()
    network, report = deployed(model, {'layer1.0.se_layer': -torch.ones(64)})
    (row,) = (row for row in report if row.path == 'layer1.0.se_layer')
    assert row.done == MOVED and ('below 0' in row.why or 'weights' in row.why) and network.with_se == (True, True)
    build('SEResNet-bottleneck', deploy=True, **options).load_state_dict(network.state_dict(), strict=True)


def test_se_layers_that_were_replaced():
    model = trained('SEResNet', **plugin('after_conv1', postfix=1))
    model.layer1[0].se_layer = nn.Identity()
    network, _ = deployed(model, {'layer2.1.se_layer': torch.ones(32)})
    assert network.with_se == ((False, True), (True, False), True, True)
    again = build('SEResNet', deploy=True, with_se=network.with_se, **plugin('after_conv1', postfix=1))
    again.load_state_dict(network.state_dict(), strict=True)


def test_nothing_is_changed_before_all_gates_are_checked():
    model = trained('SEResNet-bottleneck')
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='3 gates'):
        model.switch_to_deploy({'layer1.0.se_layer': torch.ones(64), 'layer1.1.se_layer': torch.ones(3)})
    assert before.keys() == model.state_dict().keys() and not model.deployed
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_units_that_are_all_alike_are_one_value():
    tanh = dict(act_cfg=(dict(type='ReLU'), dict(type='Tanh')))
    model = build('SEResNet', with_se=((False, False), False, [False, False], False), se_cfg=tanh)
    assert model.with_se == (False,) * 4


@pytest.mark.parametrize('name', TINY)
@pytest.mark.parametrize('se_cfg', [dict(variant='slow_squeeze_excite'), dict(squeeze='max')], ids=str)
def test_gates_as_maps(name, se_cfg):
    """The form of exported files."""
    model = trained(name, se_cfg=se_cfg).double()
    x = image(2, 96, 96, dtype=torch.float64)
    expected, keys = outputs(model, x), model.state_dict().keys()
    for network in (copy.deepcopy(model), deployed(model)[0]):
        layers = [module for module in network.modules() if isinstance(module, SELayer)]
        for layer in layers:
            layer.use_maps()
        assert layers and all(getattr(layer, layer.layers[-1]).conv.maps for layer in layers)
        assert difference(outputs(network, x), expected) < 1e-10
        assert network.deployed or network.state_dict().keys() == keys

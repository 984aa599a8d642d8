"""Gates while models run: what is recorded, and that recording changes nothing."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from mmdet.models.layers import SELayer
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import nn

from se_mm.analysis.gate_figures import PAPER
from se_mm.analysis.gates import GateRecorder, ReplacedGates, gate_layers
from se_mm.models import SEResLayer, SEResNet, SEResNetCIFAR, SEShakeShake
from se_mm.utils import InputError


def network(**options):
    torch.manual_seed(0)
    model = SEResNet(18, base_channels=16, se_ratio=4, zero_init_residual=False, norm_eval=False, **options)
    model.init_weights()
    return model


def images(number=4, size=64):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def run(model, x):
    """Outputs and gradients of a training step."""
    model.zero_grad()
    outs = model(x)
    sum(out.square().mean() for out in outs).backward()
    return [out.detach() for out in outs], [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize('fused', [False, 'torch'])
@pytest.mark.parametrize('training', [False, True])
def test_recording_changes_no_bit(fused, training):
    plain, watched = network(fused_se=fused), network(fused_se=fused)
    expected = run(plain.train(training), images())
    with GateRecorder(watched.train(training)) as recorder:
        outs, gradients = run(watched, images())
        gates = recorder.take()
        assert all(block.why_not_fused() == (None if fused else 'fused_se=False') for block in watched.layer1)
    for mine, own in zip((*outs, *gradients), (*expected[0], *expected[1])):
        assert torch.equal(mine, own)
    assert [len(gate.mean) for gate in gates.values()] == [4] * 8
    layers = gate_layers(watched)
    assert not any(layer.source._forward_hooks or watched.get_submodule(layer.path).observers for layer in layers)


@pytest.mark.parametrize('training', [False, True])
def test_recording_changes_no_bit_of_kernels(training):
    """The excitation stays in its kernel, whose gates are those that the layers compute."""
    one_stage = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    plain, watched, separate = (network(fused_se=fused, **one_stage) for fused in ('triton', 'triton', False))
    expected = run(plain.train(training), images(2, 32))
    with GateRecorder(watched.train(training)) as recorder:
        outs, gradients = run(watched, images(2, 32))
        gates = recorder.take()
    for mine, own in zip((*outs, *gradients), (*expected[0], *expected[1])):
        assert torch.equal(mine, own)
    with GateRecorder(separate.train(training)) as recorder:
        run(separate, images(2, 32))
        for name, found in recorder.take().items():
            torch.testing.assert_close(gates[name].mean, found.mean)


@pytest.mark.parametrize(
    'options',
    [
        dict(fused_se='torch'),
        *(dict(se_cfg=dict(variant=v)) for v in ('slow_squeeze', 'slow_excite', 'slow_squeeze_excite', 'bump')),
        *(dict(se_position=position) for position in ('pre', 'post', 'identity')),
        dict(se_cfg=dict(squeeze='max')),
        dict(se_cfg=dict(squeeze='none')),
    ],
    ids=str,
)
@torch.no_grad()
def test_gates_are_those_of_a_plain_run(options):
    """The gates that the layer computes from the map it gets in a network without fusion."""
    model = network(**options).eval()
    with GateRecorder(model) as recorder:
        model(images())
        gates = recorder.take()
    plain = network(**options | dict(fused_se=False)).eval()
    expected = {}
    for layer in gate_layers(plain):
        module = plain.get_submodule(layer.path)
        module.register_forward_hook(
            lambda module, arguments, output, name=layer.name: expected.update({name: module.gates(arguments[0])})
        )
    plain(images())
    assert gates.keys() == expected.keys()
    for name, found in gates.items():
        torch.testing.assert_close(found.mean, expected[name].mean((2, 3)), rtol=1e-4, atol=1e-6)
        wide = expected[name].shape[2] > 1
        assert (found.spread is None) != wide
        if wide:
            torch.testing.assert_close(found.spread, expected[name].std((2, 3), correction=0), rtol=1e-4, atol=1e-6)


FOREIGN = {
    'timm': lambda: timm.create_model('legacy_seresnet18', num_classes=3),
    'timm SE-ResNet': lambda: timm.create_model('seresnet18', num_classes=3),
    'timm MobileNet': lambda: timm.create_model('mobilenetv3_small_050', num_classes=3),
    'timm HGNet': lambda: timm.create_model('hgnet_tiny', num_classes=3),
    'timm VoVNet': lambda: timm.create_model('ese_vovnet19b_slim_dw', num_classes=3),
    'torchvision': lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
    'mmpretrain': lambda: MMPRETRAIN.build(dict(type='mmpretrain.MobileNetV3', arch='small')),
    'mmdet': lambda: nn.Sequential(SELayer(32)),
}


@pytest.mark.parametrize('build', FOREIGN.values(), ids=FOREIGN)
@torch.no_grad()
def test_layers_of_other_projects(build):
    """What such a layer gives is its input times the gates."""
    torch.manual_seed(0)
    model = build()
    model.eval()
    layers, seen = gate_layers(model), {}

    def see(name):
        return lambda module, arguments, output: seen.update({name: (arguments[0].clone(), output.clone())})

    for layer in layers:
        model.get_submodule(layer.path).register_forward_hook(see(layer.name))
    x = images(2) if not isinstance(model, nn.Sequential) else torch.rand(2, 32, 4, 4)
    with GateRecorder(model) as recorder:
        model(x)
        gates = recorder.take()
    assert list(gates) == [layer.name for layer in layers]
    for name, found in gates.items():
        before, after = seen[name]
        torch.testing.assert_close(before * found.mean[:, :, None, None], after)


def test_blocks_that_are_computed_again_count_once():
    model = network(with_cp=True).train()
    with GateRecorder(model) as recorder:
        run(model, images())
        assert [len(gate.mean) for gate in recorder.take().values()] == [4] * 8
        assert recorder.take() == {}


def test_names_are_those_of_the_papers():
    names = [layer.name for layer in gate_layers(SEResNet(50, base_channels=16))]
    assert names[:3] == ['SE_2_1', 'SE_2_2', 'SE_2_3'] and len(names) == 16 and set(PAPER) < set(names)
    cifar = gate_layers(SEResNetCIFAR('resnet20', se_ratio=4))
    assert (cifar[0].name, cifar[0].path) == ('SE_2_1', 'stage1.0.se_layer') and cifar[-1].name == 'SE_4_3'
    shake = gate_layers(SEShakeShake(dict(blocks=2, width=16, groups=None, even=False)))
    assert [layer.name for layer in shake] == [f'SE_{stage}_{unit}' for stage in (2, 3, 4) for unit in (1, 2)]
    options = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
    c4 = nn.ModuleDict(dict(backbone=SEResNet(18, base_channels=16, **options)))
    c4['roi_head'] = nn.ModuleDict(dict(shared_head=SEResLayer(18, base_channels=16)))
    assert [layer.name for layer in gate_layers(c4)] == [f'SE_{stage}_{unit}' for stage in (2, 3, 4) for unit in (1, 2)]
    assert gate_layers(c4, ['SE_5_1'])[0].path == 'roi_head.shared_head.layer4.0.se_layer'
    assert gate_layers(timm.create_model('seresnet18'))[0].name == 'SE_2_1'
    two = nn.ModuleDict(dict(a=SEResNet(18, base_channels=16), b=SEResNet(18, base_channels=16)))
    assert gate_layers(two)[0].name == gate_layers(two)[0].path == 'a.layer1.0.se_layer'


def test_some_layers():
    model = network()
    assert [layer.name for layer in gate_layers(model, ['SE_5_2', 'layer1.0.se_layer'])] == ['SE_2_1', 'SE_5_2']
    with pytest.raises(InputError, match='^SE_6_1 is no SE layer: choose of SE_2_1, '):
        gate_layers(model, ['SE_6_1'])
    with pytest.raises(InputError, match='^SEResNet has no SE layer'):
        gate_layers(SEResNet(18, with_se=False))
    with pytest.raises(InputError, match='^all SE layers of ModuleDict are in its roi_head'):
        gate_layers(nn.ModuleDict(dict(roi_head=SEResNet(18, base_channels=16))))


@pytest.mark.parametrize('fused', [False, 'torch'])
@torch.no_grad()
def test_gates_of_one_are_no_se(fused):
    """Replaced gates reach the fused path, too."""
    model, plain = network(fused_se=fused).eval(), network(with_se=False).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.enable_grad(), ReplacedGates({layer: torch.ones_like for layer in gate_layers(model)}):
        outs = model(images())
    for mine, expected in zip(outs, plain(images())):
        torch.testing.assert_close(mine.detach(), expected, rtol=1e-4, atol=1e-5)


def test_compiled_models(needs_compiler):
    model = network(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)).eval()
    compiled = torch.compile(model)
    with torch.no_grad():
        expected = compiled(images())
        with GateRecorder(compiled) as recorder:
            outs = compiled(images())
            gates = recorder.take()
        with GateRecorder(model) as recorder:
            model(images())
            eager = recorder.take()
    assert all(torch.equal(mine, own) for mine, own in zip(outs, expected))
    for name, found in eager.items():
        np.testing.assert_allclose(gates[name].mean, found.mean, rtol=1e-4, atol=1e-6)

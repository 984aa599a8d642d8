"""The SE layer alone."""

import pytest
import torch

from se_mm.models import SELayer, SEResNet
from se_mm.models.se_layer import squeezed_width
from test_resnet import images, randomize


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


@pytest.mark.parametrize('bias', [True, False])
def test_compiled_inference_of_one_image_has_sums_in_place_of_products(bias):
    layer = randomize(SELayer(32, ratio=4, bias=bias).double()).eval()
    products = []

    def backend(graph, _):
        products.append(sum(node.target is torch.nn.functional.linear for node in graph.graph.nodes))
        return graph

    def compiled(batch, grad=False, dtype=None):
        torch.compiler.reset()
        x = torch.randn(batch, 32, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        run = torch.compile(layer, backend=backend, fullgraph=True)
        with torch.set_grad_enabled(grad), torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
            torch.testing.assert_close(run(x), layer(x))
        return products[-1]

    assert compiled(1) == 0
    with torch.no_grad():
        exported = torch.export.export(layer, (torch.rand(1, 32, 5, 5, dtype=torch.float64),))
    assert sum('linear' in str(node.target) for node in exported.graph.nodes) == 2
    assert [compiled(2), compiled(1, grad=True), compiled(1, dtype=torch.bfloat16)] == [2, 2, 2]


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

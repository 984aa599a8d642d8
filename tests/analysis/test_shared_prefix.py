"""Evaluations that share what comes before a layer against whole ones."""

from collections import Counter

import pytest
import timm
import torch
import torchvision
from mmpretrain.models.backbones import MobileNetV3
from mmpretrain.models.backbones import SEResNet as TheirSEResNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from se_mm.analysis.gates import ReplacedGates, gate_layers
from se_mm.analysis.shared_prefix import SharedPrefix
from se_mm.models import SEBNInception, SELayer, SEResNet, SEResNetCIFAR, SEShuffleNet

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    'ours': lambda: SEResNet(18, base_channels=16, se_ratio=4, zero_init_residual=False),
    'some outputs': lambda: SEResNet(18, base_channels=16, se_position='post', out_indices=(0, 2)),
    'CIFAR': lambda: SEResNetCIFAR('resnet20', se_ratio=4),
    'ShuffleNet': SEShuffleNet,
    'BN-Inception': SEBNInception,
    'mmpretrain': lambda: TheirSEResNet(50, out_indices=(1, 3)),
    'MobileNet of mmpretrain': MobileNetV3,
    'timm': lambda: timm.create_model('seresnet18', num_classes=5),
    'EfficientNet of timm': lambda: timm.create_model('efficientnet_b0', num_classes=5),
    'features of timm': lambda: timm.create_model('seresnet18', features_only=True),
    'MobileNet of torchvision': lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
}


def outputs_of(model):
    outputs = model(IMAGES)
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


class Convolutions(TorchDispatchMode):
    """How often convolutions run, by their modules."""

    def __init__(self, model):
        super().__init__()
        self.modules = {module.weight: module for module in model.modules() if isinstance(module, nn.Conv2d)}
        self.runs = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default and args[1] in self.modules:
            self.runs[self.modules[args[1]]] += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize('name', NETWORKS)
@torch.no_grad()
def test_networks(name):
    """Bit-equal to whole runs with other gates; all that comes before the block is left out."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # some networks begin with branches of zero
    layers = gate_layers(model)
    prefix, expected = SharedPrefix(model, layers), outputs_of(model)
    for output, own in zip(prefix.run(lambda: outputs_of(model)), expected, strict=True):
        assert torch.equal(output, own)
    layers = [layer for layer in layers if any(layer.source in call.part.modules() for call in prefix.calls)]
    assert len(layers) > 3
    changed = 0
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        with ReplacedGates({layer: torch.zeros_like}):
            whole = outputs_of(model)
            with Convolutions(model) as convolutions:
                shared = prefix.run_from(layer, lambda: outputs_of(model))
        assert all(map(torch.equal, shared, whole))
        changed += not all(map(torch.equal, whole, expected))
        assert next(iter(convolutions.runs)) in _block(model, layer).modules()
    assert changed and all(map(torch.equal, prefix.run_from(layer, lambda: outputs_of(model)), expected))
    assert not any('forward' in vars(part) for part in prefix.parts)


def _block(model, layer):
    """The module with the shortcut."""
    path = layer.path.rpartition('.')[0]
    return model.get_submodule(path.removesuffix('.block'))  # of torchvision


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.se = nn.Conv2d(8, 8, 1), SELayer(8, ratio=2)

    def forward(self, x):
        return self.se(self.conv(x))


class Writing(nn.Module):
    """Writes into what its parts return.

    Args:
        between: code between calls adds to an output.
        late: the last block adds to the input of the blocks before.
    """

    def __init__(self, between=False, late=False):
        super().__init__()
        self.stem, self.first, self.relu, self.second = nn.Conv2d(3, 8, 1), Block(), nn.ReLU(inplace=True), Block()
        self.between, self.late = between, late

    def forward(self, x):
        stem = self.stem(x)
        if self.between:
            stem += 1
        x = self.relu(self.first(stem))
        if self.late:
            stem += x
        return self.second(x) + stem


@pytest.mark.parametrize(
    ('options', 'shared'), [({}, 3), (dict(between=True), 0), (dict(late=True), 0), (dict(between=True, late=True), 0)]
)
@torch.no_grad()
def test_outputs_that_are_written_to(options, shared):
    """A part may write into the output of another if both are given back; other outputs are computed again."""
    torch.manual_seed(0)
    model = Writing(**options).eval()
    layers = gate_layers(model)
    prefix, expected = SharedPrefix(model, layers), model(IMAGES)
    assert torch.equal(prefix.run(lambda: model(IMAGES)), expected)
    for layer, number in zip(layers, (min(shared, 1), shared)):
        for _ in range(2):
            with Convolutions(model) as convolutions:
                assert torch.equal(prefix.run_from(layer, lambda: model(IMAGES)), expected)
            assert convolutions.runs[model.stem] == (number < 1)
            assert convolutions.runs[model.first.conv] == (number < 2)


@torch.no_grad()
def test_other_kinds_of_outputs():
    """Lists are copied; a dict is computed again, and everything after it is given back."""

    class Dict(nn.Module):
        def forward(self, x):
            return dict(x=x + 1)

    class List(nn.Module):
        def forward(self, x):
            return [x, 2 * x]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dict, self.stem, self.list, self.block = Dict(), nn.Conv2d(3, 8, 1), List(), Block()

        def forward(self, x):
            outputs = self.list(self.stem(self.dict(x)['x']))
            outputs.append(self.block(outputs.pop()))
            return outputs

    model = Model().eval()
    layer = gate_layers(model)[0]
    prefix = SharedPrefix(model, [layer])
    expected = prefix.run(lambda: model(IMAGES))
    for _ in range(2):
        with Convolutions(model) as convolutions:
            assert all(map(torch.equal, prefix.run_from(layer, lambda: model(IMAGES)), expected))
        assert convolutions.runs[model.stem] == 0 and convolutions.runs[model.block.conv] == 1


@torch.no_grad()
def test_compiled_models_run_whole():
    model = Writing().eval()
    assert not SharedPrefix(torch.compile(model, backend='eager'), gate_layers(model)).parts
    model.first.compile(backend='eager')
    prefix = SharedPrefix(model, gate_layers(model))
    assert not prefix.parts
    prefix.run(lambda: model(IMAGES))
    assert torch.equal(prefix.run_from(gate_layers(model)[1], lambda: model(IMAGES)), model(IMAGES))

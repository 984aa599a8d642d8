"""Evaluations that share what comes before a layer against whole ones."""

from collections import Counter

import pytest
import timm
import torch
import torchvision
from mmpretrain.models.backbones import MobileNetV3
from mmpretrain.models.backbones import SEResNet as TheirSEResNet
from torch import nn
from torch.nn import functional as F
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
        with ReplacedGates({layer: torch.ones_like}):
            whole = outputs_of(model)
            with Convolutions(model) as convolutions:
                shared = prefix.run_from([layer], lambda: outputs_of(model))
        assert all(map(torch.equal, shared, whole))
        changed += not all(map(torch.equal, whole, expected))
        assert next(iter(convolutions.runs)) in _block(model, layer).modules()
    assert changed and all(map(torch.equal, prefix.run_from([layer], lambda: outputs_of(model)), expected))
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


class Connected(nn.Module):
    """A stem, two blocks, and whatever happens between the parts.

    Args:
        connect: computes the output from the model and images.
        parts: further parts.
    """

    def __init__(self, connect, **parts):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), Block(), Block()
        self.relu = nn.ReLU(inplace=True)
        for name, part in parts.items():
            self.add_module(name, part)
        self.connect = connect

    def forward(self, x):
        return self.connect(self, x)


class Lists(nn.Module):
    def forward(self, x):
        return [x, 2 * x]


class Dicts(nn.Module):
    def forward(self, x):
        return dict(x=x + 1)


def code_writes(model, x):
    stem = model.stem(x)
    stem += 1
    return model.second(model.first(stem))


def last_block_writes(model, x):
    stem = model.stem(x)
    x = model.second(model.first(stem))
    stem += x
    return stem


def part_writes(model, x):
    stem = model.stem(x)
    pooled = F.avg_pool2d(stem, 3, 1, 1)
    return model.second(model.first(model.relu(stem))) + pooled


def result_of_the_writer_is_not_used(model, x):
    stem = model.stem(x)
    total = stem + 1
    model.relu(total)
    return model.second(model.first(stem)) + total


def list_is_changed(model, x):
    outputs = model.lists(model.stem(x))
    outputs[-1] = model.first(outputs[-1])
    outputs[0] = model.second(outputs[-1])
    return sum(outputs)


def dict_is_passed(model, x):
    return model.second(model.first(model.stem(model.dicts(x)['x'])))


def second_block_first(model, x):
    return model.first(model.second(model.stem(x)))


def called_twice(model, x):
    stem = model.stem(x)
    return model.second(model.first(stem) + model.second(stem))


def sum_overwrites_the_stem_for_low_gates(model, x):
    """As in-place operations behind a condition do."""
    stem = model.stem(x)
    x = model.first(stem)
    return model.second(stem.add_(x) if x.abs().mean() < 0.3 else stem + x)


CONNECTED = [
    code_writes, last_block_writes, part_writes, result_of_the_writer_is_not_used, list_is_changed, dict_is_passed,
    second_block_first, called_twice, sum_overwrites_the_stem_for_low_gates,
]  # fmt: skip


@pytest.mark.parametrize('connect', CONNECTED, ids=lambda function: function.__name__)
@torch.no_grad()
def test_parts_that_are_connected_in_unusual_ways(connect):
    torch.manual_seed(0)
    model = Connected(connect, lists=Lists(), dicts=Dicts()).eval()
    layers = gate_layers(model)
    prefix, own = SharedPrefix(model, layers), model(IMAGES)
    assert torch.equal(prefix.run(lambda: model(IMAGES)), own)
    for gates in (torch.ones_like, torch.zeros_like, torch.ones_like):
        for replaced in (layers, layers[:1], layers[1:]):
            with ReplacedGates(dict.fromkeys(replaced, gates)):
                whole = model(IMAGES)
                assert not torch.equal(whole, own)
                assert torch.equal(prefix.run_from(replaced, lambda: model(IMAGES)), whole)


@torch.no_grad()
def test_what_is_computed_again():
    """A part that writes into its argument, the part that the argument is from, and a part with hooks inside."""
    torch.manual_seed(0)
    model = Connected(lambda model, x: model.second(model.first(model.relu(model.norm(model.stem(x))))))
    model.norm = nn.BatchNorm2d(8)
    model.eval()
    layers, seen = gate_layers(model), []
    prefix = SharedPrefix(model, layers)
    prefix.run(lambda: model(IMAGES))
    assert [call.part for call in prefix.calls] == [model.stem, model.norm, model.relu, model.first, model.second]
    assert [call.output is None for call in prefix.calls] == [False, True, True, False, False]
    model.first.conv.register_forward_hook(lambda *_: seen.append('first'))
    prefix.run(lambda: model(IMAGES))
    assert prefix.calls[3].output is None
    prefix.run_from(layers[1:], lambda: model(IMAGES))
    assert len(seen) == 2


@torch.no_grad()
def test_traced_parts():
    model = Connected(lambda model, x: model.second(model.first(model.traced(model.stem(x))))).eval()
    model.traced = torch.jit.trace(nn.Conv2d(8, 8, 1), torch.rand(1, 8, 4, 4))
    layers, expected = gate_layers(model), model(IMAGES)
    prefix = SharedPrefix(model, layers)
    prefix.run(lambda: model(IMAGES))
    assert torch.equal(prefix.run_from(layers[1:], lambda: model(IMAGES)), expected)


@torch.no_grad()
def test_compiled_models_run_whole():
    model = Connected(lambda model, x: model.second(model.first(model.stem(x)))).eval()
    assert not SharedPrefix(torch.compile(model, backend='eager'), gate_layers(model)).parts
    model.first.compile(backend='eager')
    prefix = SharedPrefix(model, gate_layers(model))
    assert not prefix.parts
    prefix.run(lambda: model(IMAGES))
    assert torch.equal(prefix.run_from(gate_layers(model)[1:], lambda: model(IMAGES)), model(IMAGES))

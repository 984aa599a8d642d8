"""Gates that the kernels compute together with the tail, against plain operations in float64."""

from collections import Counter

import pytest
import torch
from tails import DEVICE
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from se_mm.models import SELayer
from se_mm.models.blocks import SEBottleneck
from se_mm.ops import Excitation, excitation_kernels, map_kernels, row_kernels, se_tail

LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)
SHAPES = [(1, 6, 5, 3), (3, 20, 7, 7), (2, 5, 70, 70)]  # of one and several splits, tiles that are not full


def excitation_of(channels, squeezed, bias=True, factor=1.0):
    generator = torch.Generator().manual_seed(1)

    def parameter(*shape):
        return nn.Parameter((torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(DEVICE))

    biases = (parameter(squeezed), parameter(channels)) if bias else (None, None)
    return Excitation(parameter(squeezed, channels), biases[0], parameter(channels, squeezed), biases[1], factor)


def results(shape, excitation, dtype, layout, backend, training):
    """Output, gradients and running statistics of a tail."""
    generator = torch.Generator().manual_seed(0)
    x, identity, grad = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(3))
    if backend == 'plain':
        x, identity, grad, dtype = x.double(), identity.double(), grad.double(), torch.float64
    x, identity = (t.to(memory_format=LAYOUTS[layout]).requires_grad_() for t in (x, identity))
    norm = nn.BatchNorm2d(shape[1]).train(training)
    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(2))
    norm.to(DEVICE)
    if backend == 'plain':
        norm = norm.double()
        excitation = excitation._replace(
            **{
                k: v.detach().double().requires_grad_()
                for k, v in excitation._asdict().items()
                if k[0] in 'wb' and v is not None
            }
        )
    out = se_tail(x, identity, norm, excitation, backend)
    parameters = [p for p in (*norm.parameters(), *excitation[:4]) if p is not None]
    gradients = torch.autograd.grad(out, [x, identity, *parameters], grad)
    return [out, *gradients, norm.running_mean, norm.running_var]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('training, bias, factor', [(True, True, 1.0), (False, False, 0.2)])
def test_same_results_and_gradients(shape, layout, dtype, training, bias, factor):
    excitation = excitation_of(shape[1], 3, bias, factor)
    fused = results(shape, excitation, dtype, layout, 'triton', training)
    exact = results(shape, excitation, dtype, layout, 'plain', training)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]  # parameters are float32
    for one, two in zip(fused, exact, strict=True):
        assert (one.double() - two).norm() <= tolerance * two.norm() + 1e-12


def test_derivatives():
    """In float64 throughout, by finite differences."""
    parameters = [p.detach().double().requires_grad_() for p in excitation_of(4, 2)[:4]]
    norm = nn.BatchNorm2d(4).double().to(DEVICE)
    generator = torch.Generator().manual_seed(3)
    x, identity = (
        torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64).to(DEVICE).requires_grad_() for _ in range(2)
    )

    def tail(x, identity, weight, bias, *parameters):
        function = torch.func.functional_call
        call = lambda module, x: se_tail(x, identity, module, Excitation(*parameters), 'triton')  # noqa: E731
        return function(_Call(norm, call), {'norm.weight': weight, 'norm.bias': bias}, (x,))

    assert torch.autograd.gradcheck(tail, (x, identity, norm.weight, norm.bias, *parameters), fast_mode=True)


class _Call(nn.Module):
    def __init__(self, norm, call):
        super().__init__()
        self.norm, self.call = norm, call

    def forward(self, x):
        return self.call(self.norm, x)


def test_one_bias_alone():
    excitation = excitation_of(6, 3)._replace(b2=None)
    tensors = torch.randn(2, 2, 6, 5, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    outs = [se_tail(*tensors, nn.BatchNorm2d(6).to(DEVICE), excitation, backend) for backend in ('plain', 'triton')]
    torch.testing.assert_close(*outs)


@pytest.mark.parametrize('training', [False, True])
def test_observers_see_the_gates_of_kernels(training):
    generator, seen = torch.Generator().manual_seed(0), {'plain': [], 'triton': []}
    tensors = torch.randn(2, 3, 6, 5, 5, generator=generator).to(DEVICE)
    for backend, found in seen.items():
        excitation = excitation_of(6, 3, factor=0.5)._replace(observers=(found.append,))
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                se_tail(*tensors, nn.BatchNorm2d(6).train(training).to(DEVICE), excitation, backend)
    assert [len(found) for found in seen.values()] == [2, 2] and seen['plain'][0].shape == (3, 6)
    assert not seen['triton'][1].requires_grad
    for plain, kernel in zip(seen['plain'], seen['triton']):
        torch.testing.assert_close(kernel, plain)


class Doubled(SELayer):
    """Gates twice as large."""

    def excite(self, z):
        return 2 * super().excite(z)


def test_layers_that_have_the_gates_of_the_paper():
    layer = SELayer(64)
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.as_excitation(0.5)(z), 0.5 * layer.excite(z))
    assert SELayer(64, bias=False).as_excitation(1.0).b1 is None
    others = [
        SELayer(64, variant='bump'),
        SELayer(64, squeeze='none'),
        SELayer(64, act_cfg=(dict(type='ReLU'), dict(type='Tanh'))),
        SELayer(64, act_cfg=(dict(type='Swish'), dict(type='Sigmoid'))),
    ]
    layer.conv2.register_forward_hook(lambda *_: None)
    assert [other.as_excitation(1.0) for other in (*others, layer, Doubled(64))] == [None] * 6


class Operations(TorchDispatchMode):
    """Counts what runs on the device: all operations but views and allocations."""

    FREE = ('view', 'empty', 'new_empty', 'detach', 'alias', 'select', 'slice', 'unbind', 'split', 't', '_unsafe_view')

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix('aten::').removesuffix('_like')
        self.count[name] += name not in self.FREE
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    """Counts of kernels, which do nothing."""
    found = Counter()

    class Stub:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: found.update([self.name])

    for module in (map_kernels, row_kernels, excitation_kernels):
        for name in dir(module):
            if name.endswith('_kernel'):
                monkeypatch.setattr(module, name, Stub(name))
    return found


def test_number_of_launches(launches):
    """Of a bottleneck's tail in mixed precision, whose positions are split: 5 forward, 6 backward."""
    block = SEBottleneck(256, 64, fused_se='triton').to(DEVICE)
    x, identity = (
        torch.zeros(8, 256, 56, 56, dtype=torch.bfloat16, device=DEVICE)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
        for _ in range(2)
    )
    with torch.autocast(DEVICE, torch.bfloat16), Operations() as forward:
        out = block.tail(x, identity)
    assert launches.total() == 4 and forward.count.total() + launches.total() <= 5, (launches, forward.count)
    launches.clear()
    grad = torch.zeros_like(out)
    with Operations() as backward:
        torch.autograd.grad(out, [x, identity, *block.bn3.parameters(), *block.se_layer.parameters()], grad)
    assert launches.total() == 5 and backward.count.total() + launches.total() <= 6, (launches, backward.count)

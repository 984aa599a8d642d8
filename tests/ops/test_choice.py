"""Which backend computes a tail, what it refuses, and what compilers and tracers make of it."""

import copy

import pytest
import torch
from tails import DEVICE, FUSED, maps, results, tail_for
from torch import nn

from se_mm.ops import Excitation, choose, se_tail


def test_choice_gives_its_reason():
    x, identity, _ = maps((2, 6, 160, 160), torch.float32)
    norm = nn.BatchNorm2d(6).to(DEVICE)
    assert choose(x, identity, norm).backend == ('triton' if x.is_cuda else 'torch')
    hooked = copy.deepcopy(norm)
    hooked.register_forward_hook(lambda *args: None)
    for arguments, words in {
        (x, identity, nn.GroupNorm(2, 6)): 'GroupNorm is not',
        (x, identity, hooked): 'BatchNorm2d has hooks',
        (x, identity.double(), norm): 'identity differs',
        (x, identity[:1], norm): 'identity differs',
        (x.int(), identity.int(), norm): 'torch.int32',
        (x[0], identity[0], norm): '(6, 160, 160)',
        (x[:0], identity[:0], norm): '(0, 6, 160, 160)',
        (x.to('meta'), identity.to('meta'), norm): 'meta',
    }.items():
        choice = choose(*arguments)
        assert choice.backend == 'plain' and words in choice.reason, choice
    if not x.is_cuda:
        small = choose(x[:, :, :9, :9], identity[:, :, :9, :9], norm)
        assert small.backend == 'plain' and 'faster so on the CPU' in small.reason
    with torch.no_grad():
        assert choose(x, identity, norm).backend == ('triton' if x.is_cuda else 'plain')


def test_what_cannot_be_fused_is_computed_all_the_same():
    shape = (2, 6, 3, 3)
    tail = tail_for(shape)
    tail.norm = nn.GroupNorm(2, 6).to(DEVICE)
    tensors = maps(shape, torch.float32)
    default, plain = results(tail, *tensors, None), results(tail, *tensors, 'plain')
    assert all(torch.equal(value, default[name]) for name, value in plain.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason='here Triton starts')
def test_where_triton_does_not_start_is_said_once(monkeypatch):
    """As on a GPU without a C compiler."""
    from se_mm.ops import choice

    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    choice._why_no_driver.cache_clear()
    with pytest.warns(UserWarning, match='SE is not fused: Triton does not start .*. Install gcc') as warned:
        whys = [choice._why_not_triton(torch.device('cuda')) for _ in range(2)]
    assert len(warned) == 1 and whys[0] == whys[1] and whys[0].startswith('Triton does not start')


def test_mistakes_are_named(monkeypatch):
    x = torch.rand(2, 6, 3, 3)
    with pytest.raises(ValueError, match="backend='torch': identity differs from x in shape"):
        se_tail(x, x[:, :3], nn.BatchNorm2d(6), torch.sigmoid, 'torch')
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(ValueError, match="backend='triton': Triton needs a GPU, and x is on cpu"):
        se_tail(x, x, nn.BatchNorm2d(6), torch.sigmoid, 'triton')
    tail = tail_for((1, 6, 1, 1))
    x, identity, _ = maps((1, 6, 1, 1), torch.float32)
    with pytest.raises(ValueError, match="'cuda'.*'plain', 'torch', 'triton'"):
        tail(x, identity, 'cuda')
    for backend in ('torch', 'plain'):
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            tail(x, identity, backend)
    x, identity, _ = maps((2, 6, 3, 3), torch.float32)
    other = nn.BatchNorm2d(4).to(DEVICE)
    with pytest.raises(ValueError, match=r'weight of the norm: \(4,\) on .*, but maps .* need \(6,\)'):
        se_tail(x, identity, other, torch.sigmoid, 'torch')
    weights = torch.ones(2, 4, device=DEVICE), None, torch.ones(4, 2, device=DEVICE), None
    with pytest.raises(ValueError, match=r'w1 of the gate: \(2, 4\) on .* need \(2, 6\)'):
        se_tail(x, identity, tail.norm, Excitation(*weights), 'torch')
    with pytest.raises(RuntimeError, match='expand'):
        se_tail(x, identity, tail.norm, lambda z: z[:, :2], 'torch')
    tail.norm = nn.GroupNorm(2, 6).to(DEVICE)
    with pytest.raises(ValueError, match="backend='torch': GroupNorm is not BatchNorm2d.*choose 'plain'"):
        tail(x, identity, 'torch')


@pytest.mark.usefixtures('needs_compiler')
@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.slow
def test_compiled_without_graph_breaks(mode):
    shape = (3, 8, 5, 7)
    tail = tail_for(shape, mode)
    tensors = maps(shape, torch.float32)
    eager = results(tail, *tensors, 'torch')
    compiled = copy.deepcopy(tail)
    # Inductor does not quote the path of torch's headers for the C++ compiler
    inductor = mode == 'train' and ' ' not in torch.__file__
    compiled.compile(fullgraph=True, backend='inductor' if inductor else 'aot_eager')
    x, identity = tensors[0].requires_grad_(), tensors[1].requires_grad_()
    out = compiled(x, identity)
    out.backward(tensors[2])
    torch.testing.assert_close(out.detach(), eager['out'], rtol=1e-5, atol=1e-5)
    for name, grad in dict(x=x.grad, identity=identity.grad).items():
        torch.testing.assert_close(grad, eager[name], rtol=1e-5, atol=1e-5)
    for name, tensor in [*compiled.named_parameters(), *compiled.named_buffers()]:
        got = tensor.double() if tensor.grad is None else tensor.grad
        torch.testing.assert_close(got, eager[name], rtol=1e-5, atol=1e-5)


def test_exported_as_standard_operations():
    shape = (2, 6, 3, 3)
    tail = tail_for(shape, 'eval')
    x, identity, _ = maps(shape, torch.float32)
    program, plain = (torch.export.export(tail, arguments) for arguments in ((x, identity), (x, identity, 'plain')))
    operations, expected = ([str(n.target) for n in p.graph.nodes if n.op == 'call_function'] for p in (program, plain))
    if hasattr(torch.compiler, 'is_exporting'):  # torch 2.5 does not tell: it exports the passes
        assert operations == expected and operations
    torch.testing.assert_close(program.module()(x, identity), tail(x, identity, 'plain'))
    traced = torch.jit.trace(tail, (x, identity))
    torch.testing.assert_close(traced(x, identity), tail(x, identity, 'plain'))


@pytest.mark.parametrize('backend', [None, *FUSED])
@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_symbolic_traces_have_standard_operations(mode, backend):
    shape = (2, 6, 3, 3)
    tail = tail_for(shape, mode).double()
    x, identity, _ = maps(shape)
    traced = torch.fx.symbolic_trace(tail, concrete_args=dict(backend=backend))
    assert 'norm' in [node.target for node in traced.graph.nodes if node.op == 'call_module']
    with torch.no_grad():
        torch.testing.assert_close(traced(x, identity, backend), tail(x, identity, 'plain'))

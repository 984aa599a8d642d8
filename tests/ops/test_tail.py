"""What a fused tail computes, against plain operations."""

import copy
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tails import DEVICE, FUSED, maps, results, tail_for
from torch import nn

from se_mm.ops import plain_se_tail, se_tail

ROOT = Path(__file__).resolve().parents[2]


def away_from_the_kink(tail, x, identity):
    """Where rounding does not decide on which side of ReLU's kink an element is, which would hide all other errors."""
    tail = copy.deepcopy(tail).double()
    y = tail.norm(x.double())
    return (y * tail.gate(y.mean((2, 3)))[:, :, None, None] + identity.double()).abs() > 0.05


@pytest.mark.parametrize('backend', FUSED)
@pytest.mark.parametrize('mode', ['train', 'eval', 'frozen'])
def test_gradients_are_those_of_finite_differences(mode, backend):
    shape = (2, 3, 2, 3)
    tail = tail_for(shape, mode).double()
    x, identity, _ = maps(shape)
    names = [name for name, p in tail.named_parameters() if p.requires_grad]
    parameters = [p.detach().clone().requires_grad_() for p in tail.parameters() if p.requires_grad]

    def function(x, identity, *parameters):
        return torch.func.functional_call(tail, dict(zip(names, parameters)), (x, identity, backend))

    inputs = (x.requires_grad_(), identity.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=backend == 'triton')


LARGE = (2, 2, 100, 168)  # positions are split among five programs
SHAPES = [(4, 12, 1, 1), (1, 6, 5, 3), (3, 20, 7, 7), (2, 33, 14, 9), LARGE]
CASES = [
    *itertools.product(SHAPES, ('contiguous', 'channels_last'), (torch.float32, torch.bfloat16)),
    *((shape, 'contiguous', torch.float16) for shape in SHAPES),
    *((shape, 'strided', torch.float32) for shape in SHAPES if shape != LARGE),  # are copied to contiguous maps
]


@pytest.mark.parametrize('backend', FUSED)
@pytest.mark.parametrize(('shape', 'layout', 'dtype'), CASES, ids=lambda value: str(value).removeprefix('torch.'))
@pytest.mark.slow
def test_error_is_at_most_twice_that_of_plain_operations(shape, layout, dtype, backend):
    """Against float64, in the norm of each result over several draws. As in mixed precision, parameters are float32."""
    for mode, offset in (('train', 0), ('train', 100 if dtype == torch.float32 else 4), ('eval', 0)):
        tail = tail_for(shape, mode)
        tail.gate.to(dtype)[1] = nn.SiLU()  # without a kink, see above
        squares = {}
        for seed in range(3 if backend == 'triton' and not offset else 6):  # Triton's interpreter is slow
            tensors = maps(shape, dtype, layout, offset, seed)
            tensors[2] *= away_from_the_kink(tail, *tensors[:2])
            exact = results(tail, *tensors, 'plain', torch.float64)
            plain = results(tail, *tensors, 'plain')
            fused = results(tail, *tensors, backend)
            assert fused['out'].dtype == plain['out'].dtype == dtype
            assert set(fused) == set(plain) == set(exact)
            for name, value in exact.items():
                sums = squares.setdefault(name, [0, 0, 0])
                for i, tensor in enumerate((plain[name] - value, fused[name] - value, value)):
                    sums[i] += tensor.double().square().sum().item()
        for name, (plain, fused, norm) in squares.items():
            # where plain operations happen to be exact: rounding of the result, and of a few float32 numbers before it
            rounding = max(torch.finfo(dtype).eps / 2, 8 * torch.finfo(torch.float32).eps)
            allowed = max(2 * plain**0.5, rounding * norm**0.5)
            assert fused**0.5 <= allowed, f'{mode}, offset {offset}, {name}: {fused**0.5:.3g} > {allowed:.3g}'


@pytest.mark.parametrize('backend', FUSED)
def test_deviation_survives_a_mean_ten_thousand_times_larger(backend):
    shape = (4, 8, 9, 9)
    x, identity, grad = maps(shape, torch.float32, offset=1e4)
    tail = tail_for(shape)
    tail.norm.momentum = 1.0
    var = results(tail, x, identity, grad, backend)['norm.running_var']
    torch.testing.assert_close(var, x.double().var((0, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize('backend', FUSED)
def test_squares_of_a_mean_may_overflow(backend):
    """The variance is 0."""
    x, identity, grad = maps(LARGE, torch.float32)
    tail = tail_for(LARGE)
    tail.norm.momentum = 1.0
    found = results(tail, torch.full_like(x, 1e20), identity, grad, backend)
    assert (found['norm.running_var'] == 0).all() and (found['norm.running_mean'] == torch.tensor(1e20)).all()
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize('backend', FUSED)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_rows_and_channels_without_variance(layout, backend):
    shape = (3, 6, 5, 5)
    x, identity, grad = maps(shape, torch.float32, layout)
    x[1, 2] = 0.5
    x[:, 4] = 0
    tail = tail_for(shape)
    exact = results(tail, x, identity, grad, 'plain', torch.float64)
    for name, found in results(tail, x, identity, grad, backend).items():
        torch.testing.assert_close(found.double(), exact[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize('backend', FUSED)
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(momentum=None),
        dict(momentum=0.3, eps=0.1),
        dict(affine=False),
        dict(bias=False),
        dict(track_running_stats=False),
    ],
    ids=str,
)
def test_running_statistics_are_those_of_batch_norm(kwargs, backend):
    shape = (3, 7, 4, 5)
    fused = tail_for(shape, **kwargs).double()
    plain = copy.deepcopy(fused)
    for step in range(3):
        x, identity, _ = maps(shape, seed=step)
        torch.testing.assert_close(fused(x, identity, backend), plain(x, identity, 'plain'))
    fused.norm.eval(), plain.norm.eval()
    torch.testing.assert_close(fused(x, identity, backend), plain(x, identity, 'plain'))
    state = plain.state_dict()
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(value, state[name])


@pytest.mark.parametrize('backend', FUSED)
def test_folded_batch_norm_is_identity(backend):
    shape = (3, 7, 4, 5)
    tail = tail_for(shape).double()
    tail.norm = nn.Identity()
    tensors = maps(shape)
    before = tensors[0].clone()
    exact, fused = results(tail, *tensors, 'plain'), results(tail, *tensors, backend)
    for name, value in exact.items():
        torch.testing.assert_close(fused[name], value)
    with torch.no_grad():
        torch.testing.assert_close(tail(*tensors[:2]), exact['out'])
    assert torch.equal(tensors[0], before)


@pytest.mark.parametrize('backend', ['plain', *FUSED])
@pytest.mark.parametrize('folded', [False, True])
def test_means_that_the_caller_knows(folded, backend):
    """They decide on the gates, and on nothing else."""
    tail = tail_for(LARGE, 'eval').double()
    if folded:
        tail.norm = nn.Identity()
    x, identity, _ = maps(LARGE)
    with torch.no_grad():
        for means in (x.mean((2, 3)), x.mean((2, 3)) + 1):
            gates = tail.gate(tail.norm(means[:, :, None, None]).flatten(1))
            expected = (tail.norm(x) * gates[:, :, None, None] + identity).relu()
            torch.testing.assert_close(se_tail(x, identity, tail.norm, tail.gate, backend, means=means), expected)
    with pytest.raises(ValueError, match='means: .* leave them out'):
        se_tail(x, identity, tail.norm, tail.gate, backend, means=means)
    for wrong in (means[:1], means[:, :1], means.repeat(1, 2)):
        with torch.no_grad(), pytest.raises(ValueError, match=r'means: \(\d, \d\) on .*, but x is \(2, 2, 100, 168\)'):
            se_tail(x, identity, tail.norm, tail.gate, backend, means=wrong)
    with torch.no_grad(), pytest.raises(ValueError, match='means: .* leave them out'):
        se_tail(x, identity, nn.BatchNorm2d(2).double().to(x.device), tail.gate, backend, means=means)


@pytest.mark.parametrize('backend', FUSED)
@pytest.mark.parametrize(
    'needing', [['x'], ['identity'], ['norm'], ['gate'], ['x', 'gate'], ['norm', 'identity']], ids=str
)
def test_any_subset_may_need_gradients(needing, backend):
    shape = (2, 6, 3, 3)
    grads = {}
    for which in ('plain', backend):
        tail = tail_for(shape).double()
        x, identity, grad = maps(shape)
        leaves = dict(x=[x], identity=[identity], norm=list(tail.norm.parameters()), gate=list(tail.gate.parameters()))
        for name, tensors in leaves.items():
            for tensor in tensors:
                tensor.requires_grad_(name in needing)
        tail(x, identity, which).backward(grad)
        grads[which] = [t.grad for tensors in leaves.values() for t in tensors]
    assert any(g is not None for g in grads[backend])
    for plain, fused in zip(grads['plain'], grads[backend]):
        assert (plain is None) == (fused is None)
        if plain is not None:
            torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize('backend', FUSED)
def test_one_gate_for_all_channels(backend):
    shape = (2, 6, 3, 3)
    tail = tail_for(shape).double()
    tail.gate = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid()).double().to(DEVICE)
    plain, fused = (results(tail, *maps(shape), name) for name in ('plain', backend))
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize('backend', FUSED)
def test_same_call_gives_the_same_bits(backend):
    shape = (2, 3, 65, 70)
    tail = tail_for(shape)
    tensors = maps(shape, torch.float32)
    first, second = results(tail, *tensors, backend), results(tail, *tensors, backend)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize('backend', FUSED)
def test_nan_is_not_hidden(backend):
    shape = (2, 6, 3, 3)
    tail = tail_for(shape).double()
    x, identity, _ = maps(shape)
    identity[0, 1, 2, 2] = float('nan')
    out = tail(x, identity, backend)
    assert out.isnan().sum() == 1 and out[0, 1, 2, 2].isnan()
    x[1, 4, 0, 0] = float('nan')
    assert tail(x, identity, backend)[:, 4].isnan().all()


@pytest.mark.parametrize('backend', FUSED)
def test_second_derivatives_are_refused(backend):
    shape = (2, 6, 3, 3)
    tail = tail_for(shape).double()
    x, identity, _ = maps(shape)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match='no second derivatives.*fused_se=False'):
        torch.autograd.grad(tail(x, identity, backend).sum(), x, create_graph=True)
    (gradient,) = torch.autograd.grad(tail(x, identity, 'plain').sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize('backend', FUSED)
def test_only_x_and_output_are_stored_for_backward(backend):
    shape = (2, 64, 28, 28)
    tail = tail_for(shape)
    x, identity, _ = maps(shape, torch.float32)
    stored = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: stored.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t, lambda t: t
    ):
        out = tail(x.requires_grad_(), identity.requires_grad_(), backend)
    assert {x.data_ptr(), out.data_ptr()} <= set(stored)
    assert sum(stored.values()) < 1.02 * (x.nbytes + out.nbytes)


@pytest.mark.parametrize('backend', FUSED)
def test_autocast(backend):
    shape = (2, 6, 5, 5)
    tail = tail_for(shape)
    x, identity, grad = maps(shape, torch.bfloat16)
    exact = results(tail, x, identity, grad, 'plain', torch.float64)
    with torch.autocast(DEVICE, torch.bfloat16):
        plain, fused = results(tail, x, identity, grad, 'plain'), results(tail, x, identity, grad, backend)
    assert fused['out'].dtype == torch.bfloat16 and fused['norm.weight'].dtype == torch.float32
    for name, value in exact.items():
        errors = [(r[name].double() - value).norm() for r in (plain, fused)]
        assert errors[1] <= max(2 * errors[0], 2**-8 * value.norm()), name


SYNC = """
import copy, sys, torch, torch.distributed as dist
from torch import nn
sys.path.insert(0, 'tests/ops')
from tails import maps, results, tail_for
rank, backend = int(sys.argv[1]), sys.argv[2]
dist.init_process_group('gloo', init_method=f'file://{sys.argv[3]}', rank=rank, world_size=2)
shape = (5, 6, 4, 3)
whole = tail_for(shape).double()
parts = slice(0, 2) if rank == 0 else slice(2, 5)
tensors = maps(shape)
want = results(whole, *tensors, 'plain')
mine = copy.deepcopy(whole)
mine.norm = nn.SyncBatchNorm.convert_sync_batchnorm(mine.norm)
got = results(mine, *[t[parts] for t in tensors], backend)
for name, value in got.items():
    if name in ('out', 'x', 'identity'):
        torch.testing.assert_close(value, want[name][parts], msg=name)
    elif value.dim() and 'running' not in name:
        dist.all_reduce(value)
        torch.testing.assert_close(value, want[name], msg=name)
    else:
        torch.testing.assert_close(value, want[name], msg=name)
dist.destroy_process_group()
print('equal')
"""


@pytest.mark.parametrize('backend', FUSED)
@pytest.mark.slow
def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch(tmp_path, backend):
    """Two processes with 2 and 3 images against one with 5."""
    command = [sys.executable, '-W', 'ignore', '-c', SYNC]
    processes = [
        subprocess.Popen(
            [*command, str(rank), backend, str(tmp_path / 'store')], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for rank in range(2)
    ]
    assert [p.communicate(timeout=120)[0].strip() for p in processes] == ['equal', 'equal']


def test_plain_is_the_definition():
    x, identity, _ = maps((2, 6, 3, 3))
    tail = tail_for((2, 6, 3, 3), 'eval').double()
    y = tail.norm(x)
    s = tail.gate(y.mean((2, 3)))
    expected = (y * s[:, :, None, None] + identity).clamp(min=0)
    torch.testing.assert_close(plain_se_tail(x, identity, tail.norm, tail.gate), expected)
    with torch.no_grad():
        torch.testing.assert_close(plain_se_tail(x, identity, tail.norm, tail.gate), expected)

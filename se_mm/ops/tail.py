"""The SE residual tail: relu(y * gate(z) + identity) with y = batch norm of x and z the squeeze of y.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, figure 3.

Done one after the other, its operations read and write the feature map a dozen times and store y
for backward. None of that is needed. With w, b, m and v the weight, bias, mean and inverse
deviation of batch norm, mean_nc the mean of image n's channel c, and s the gates:

* squeeze: batch norm is affine, so the mean of y is z = w v (mean_nc - m) + b, and one pass over
  x for the moments of its rows gives z, m and v;
* excitation: s = gate(z), N x C numbers, any module;
* scale, sum and ReLU: one pass, out = relu(s (w v (x - mean_nc) + z) + identity).

Backward takes one pass for g, the gradient before ReLU, with the sums of g and g (x - mean_nc)
over every row, from which all vectors follow, and one for the gradient of x,
k0 g + k1 + k2 (x - mean_nc). Only x and out are stored, both of which a plain residual unit stores.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from . import passes
from .passes import Normalised, Statistics

BACKENDS = ('plain', 'torch', 'triton')
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SMALL = 2**18  # elements; below, the many operations on N x C numbers outweigh the passes that are saved
BATCH_NORMS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
Gate = Callable[[Tensor], Tensor]


class Choice(NamedTuple):
    """How a tail is computed: one of ``BACKENDS``, and why."""

    backend: str
    reason: str


SYMBOLIC = Choice('plain', 'symbolic traces have standard operations')
IN_PLACE = Choice('plain', 'without gradients, the operations in place are the fastest on the CPU')


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called with a module's input, output or gradients."""
    m = module
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def is_batch_norm(norm: nn.Module) -> bool:
    """Whether a module normalises as batch norm does, such as MMEngine's SyncBatchNorm and what that becomes on one
    device."""
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and type(norm).forward in BATCH_NORMS


def why_not_fused(norm: nn.Module, **skipped: nn.Module) -> str | None:
    """Why a tail with this norm can never be fused; None if it can.

    Args:
        norm: the norm before SE.
        skipped: by name, further modules that would not be called, which hooks would miss.
    """
    if not is_batch_norm(norm) and type(norm) is not nn.Identity:
        return f'{type(norm).__name__} is not BatchNorm2d, SyncBatchNorm or Identity'
    if has_hooks(norm):
        return f'{type(norm).__name__} has hooks, which want to see its input or output'
    for name, module in skipped.items():
        if has_hooks(module):
            return f'{name} has hooks, which want to see its input or output'
    return None


def choose(x: Tensor, identity: Tensor, norm: nn.Module) -> Choice:
    """What :func:`se_tail` does with these arguments.

    'plain' runs the operations one after the other, 'torch' the passes as torch operations,
    'triton' the passes as Triton kernels.
    """
    why = why_not_fused(norm)
    return Choice('plain', why) if why else _choose(x, identity, norm)


def _choose(x: Tensor, identity: Tensor, norm: nn.Module) -> Choice:
    """:func:`choose` for a norm that can be fused."""
    if not isinstance(x, Tensor):
        return SYMBOLIC
    group, compiling = _process_group(norm), torch.compiler.is_compiling()
    if not torch.is_grad_enabled() and x.device.type == 'cpu' and group is None and not compiling:
        return IN_PLACE
    why = _why_not_here(x, identity, group, compiling)
    if why:
        return Choice('plain', why)
    if compiling:
        return Choice('torch', 'torch.compile turns each pass into one kernel')
    if x.is_cuda:
        return Choice('triton', 'one Triton kernel for each pass')
    if group is not None:
        return Choice('torch', 'torch has no SyncBatchNorm on the CPU')
    if x.numel() < SMALL:
        return Choice('plain', f'maps of less than {SMALL} elements are faster so on the CPU')
    return Choice('torch', 'torch operations are the fastest on the CPU')


def _why_not_here(x: Tensor, identity: Tensor, group: dist.ProcessGroup | None, compiling: bool) -> str | None:
    if torch.jit.is_tracing() or getattr(torch.compiler, 'is_exporting', bool)():
        return 'exported graphs have standard operations'
    if x.device.type not in ('cpu', 'cuda'):
        return f'no kernels for {x.device.type}'
    if x.is_cuda and not compiling and (why := _why_not_triton(x.device)):
        return why
    if compiling and group is not None:
        return 'torch.compile does not trace the communication of SyncBatchNorm'
    why = _why_not_maps(x, identity)
    return why or (None if identity.dtype == x.dtype else 'identity differs from x in dtype')


def _why_not_maps(x: Tensor, identity: Tensor) -> str | None:
    if x.dtype not in DTYPES:
        return f'no kernels for {x.dtype}'
    if x.dim() != 4 or x.numel() == 0:
        return f'x of shape {tuple(x.shape)} is not (N, C, H, W) with elements'
    if (identity.shape, identity.device) != (x.shape, x.device):
        return 'identity differs from x in shape or device'
    return None


@functools.cache
def _why_not_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec('triton') is None:
        return 'Triton is not installed'
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f'Triton does not support {torch.cuda.get_device_name(device)}'
    return _why_no_driver()


@functools.cache
def _why_no_driver() -> str | None:
    """Triton compiles its driver when it starts, with a C compiler and the headers of Python. Warns if it cannot."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:  # no compiler, no headers, a broken cache
        why = f'Triton does not start ({error})'
        warnings.warn(f'SE is not fused: {why}. Install gcc and the headers of Python (python3-dev)', stacklevel=2)
        return why
    return None


def _why_not_insisted(backend: str, x: Tensor, identity: Tensor) -> str | None:
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'  # Triton's own way to run on the CPU
    if backend == 'triton' and not x.is_cuda and not interpreted:
        return f'Triton needs a GPU, and x is on {x.device.type}'
    why = _why_not_triton(x.device) if backend == 'triton' and x.is_cuda else None
    return why or _why_not_maps(x, identity)


def _process_group(norm: nn.Module) -> dist.ProcessGroup | None:
    """Processes that share the batch statistics of ``norm`` now."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def plain_se_tail(x: Tensor, identity: Tensor, norm: nn.Module, gate: Gate, *, in_place: bool = False) -> Tensor:
    """:func:`se_tail` by its definition, for any norm and dtype: what the fused backends are compared with.

    Args:
        x, identity, norm, gate: of :func:`se_tail`.
        in_place: whether norm(x) may be overwritten: there are no gradients, and no hook holds it.
    """
    y = norm(x)
    gates = gate(y.mean((2, 3))).to(y.dtype)
    return scale_add(y, gates, identity, in_place=in_place and y is not x).relu_()


def scale_add(y: Tensor, gates: Tensor, identity: Tensor, *, in_place: bool = False) -> Tensor:
    """y * gates + identity.

    Args:
        y: (N, C, H, W).
        gates: (N, C), of the dtype of y.
        identity: as y, or of another dtype.
        in_place: whether y may be overwritten.
    """
    gates = gates.unsqueeze(-1).unsqueeze(-1)
    if not isinstance(y, Tensor) or identity.dtype != y.dtype:
        return y * gates + identity
    return torch.addcmul(identity, y, gates, out=y if in_place else None)


def se_tail(
    x: Tensor,
    identity: Tensor,
    norm: nn.Module,
    gate: Gate,
    backend: str | None = None,
    *,
    fusible: bool = False,
) -> Tensor:
    """relu(y * gate(z) + identity), where y = norm(x) and z is the mean of y over H and W.

    Args:
        x: (N, C, H, W), output of a branch's last convolution; float16, bfloat16, float32 or
            float64, contiguous or channels_last (other strides are copied).
        identity: the shortcut, of the same shape and dtype.
        norm: BatchNorm2d or SyncBatchNorm in any mode, whose running statistics are updated as by
            calling it; Identity if batch norm is folded into the convolution; others are not fused.
        gate: module or function from z to gates, both (N, C); under autocast it may return
            another dtype than that of x, in which it gets z.
        backend: one of ``BACKENDS``, None for :func:`choose`.
        fusible: True if the caller knows that :func:`why_not_fused` has no reason; it is not asked again.

    Returns:
        (N, C, H, W), of the dtype of x (promoted with that of identity if they differ).

    Note:
        All processes that share a SyncBatchNorm have to take the same backend: hooks on the norm of some
        of them only, or an empty batch, would mix up what they exchange.

    Raises:
        ValueError: unknown backend, or one that has no such norm, maps or device; batch statistics of a single
            element.
        RuntimeError: in backward, for second derivatives, which only 'plain' has.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f'backend={backend!r}: choose one of {BACKENDS}')
    why = None if fusible else why_not_fused(norm)
    if why and backend not in (None, 'plain'):
        raise ValueError(f"backend={backend!r}: {why}; choose 'plain'")
    if backend is None or not isinstance(x, Tensor):
        backend = 'plain' if why else _choose(x, identity, norm).backend
    elif backend != 'plain':
        why = _why_not_insisted(backend, x, identity)
        if why:
            raise ValueError(f"backend={backend!r}: {why}; choose 'plain', or None for what is possible")
    if backend == 'plain':
        in_place = why is None and not (torch.is_grad_enabled() or torch.jit.is_tracing())
        return plain_se_tail(x, identity, norm, gate, in_place=in_place)

    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    ops, (weight, bias, statistics) = _backend(backend), _batch_norm_arguments(x, norm)
    with torch.cuda.device_of(x) if backend == 'triton' else nullcontext():  # kernels run on the current GPU
        if not torch.is_grad_enabled():
            z, normalised = normalised_means(ops, x, weight, bias, statistics)
            return ops.scale_add_relu(x, normalised.vectors, gate(z.to(x.dtype)).to(z.dtype), identity)
        x, vectors, z = NormalisedMeans.apply(ops, x, weight, bias, statistics)
        return ScaleAddReLU.apply(ops, x, vectors, gate(z.to(x.dtype)).to(z.dtype), identity)


def _batch_norm_arguments(x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor, Statistics]:
    """Weight and bias (C,) and the statistics of a norm, which counts the batch."""
    dtype = passes.accumulation_dtype(x)
    if isinstance(norm, nn.Identity) or norm.weight is None or norm.bias is None:
        ones, zeros = x.new_ones(x.shape[1], dtype=dtype), x.new_zeros(x.shape[1], dtype=dtype)
    if isinstance(norm, nn.Identity):
        return ones, zeros, Statistics(zeros, ones, batch=False, momentum=None, eps=0.0, group=None)
    weight = ones if norm.weight is None else norm.weight
    bias = zeros if norm.bias is None else norm.bias
    momentum = None
    if norm.training and norm.track_running_stats and norm.running_mean is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    batch, group = norm.training or norm.running_mean is None, _process_group(norm)
    if batch and group is None and x.numel() == x.shape[1]:
        raise ValueError(f'Expected more than 1 value per channel when training, got input size {tuple(x.shape)}')
    return weight, bias, Statistics(norm.running_mean, norm.running_var, batch, momentum, norm.eps, group)


def _backend(name: str) -> ModuleType:
    if name == 'triton':
        from . import triton_passes

        return triton_passes
    return passes


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the fused SE tail has no second derivatives (create_graph=True): use backend='plain', "
            'in a backbone fused_se=False'
        )


def normalised_means(
    ops: ModuleType, x: Tensor, weight: Tensor, bias: Tensor, statistics: Statistics
) -> tuple[Tensor, Normalised]:
    """All that comes before the gates, see :func:`passes.normalise`."""
    return ops.normalise(ops.row_moments(x, variance=statistics.batch), weight, bias, statistics)


class NormalisedMeans(Function):
    """x to x, vectors, z. Gradients come with a message: z gets that of the gates alone.

    The gradient of x through batch norm needs what :class:`ScaleAddReLU` sums in backward. It
    arrives as the "gradients" of the first two outputs, which only that class may use: g, the
    gradient before ReLU, and, in place of the vectors' gradient, the gates with the sums over g.
    """

    @staticmethod
    def forward(ctx, ops, x, weight, bias, statistics):
        z, (vectors, mean, invstd, total) = normalised_means(ops, x, weight, bias, statistics)
        ctx.save_for_backward(x, vectors, mean, invstd)
        ctx.ops, ctx.dtype, ctx.total = ops, weight.dtype, total
        ctx.batch, ctx.group = statistics.batch, statistics.group
        return x, vectors, z

    @staticmethod
    def backward(ctx, g, message, dz):
        _refuse_second_derivatives()
        x, vectors, mean, invstd = ctx.saved_tensors
        k, dweight, dbias = ctx.ops.coefficients(
            message,
            dz,
            Normalised(vectors, mean, invstd, ctx.total),
            count=x.shape[2] * x.shape[3],
            batch=ctx.batch,
            group=ctx.group,
        )
        dx = ctx.ops.input_gradient(g, x, vectors[0], k) if ctx.needs_input_grad[1] else None
        return None, dx, dweight.to(ctx.dtype), dbias.to(ctx.dtype), None


class ScaleAddReLU(Function):
    """relu(gates * y + identity) from what :class:`NormalisedMeans` returns."""

    @staticmethod
    def forward(ctx, ops, x, vectors, gates, identity):
        out = ops.scale_add_relu(x, vectors, gates, identity)
        ctx.save_for_backward(x, vectors, gates, out)
        ctx.ops = ops
        return out

    @staticmethod
    def backward(ctx, grad):
        _refuse_second_derivatives()
        x, vectors, gates, out = ctx.saved_tensors
        g, message, dgates = ctx.ops.gate_gradients(grad, out, x, vectors, gates)
        return None, g, message, dgates, g

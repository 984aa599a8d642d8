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

from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import Function

from . import passes
from .choice import BACKENDS, choose_fusible, is_affine, process_group, why_not_fused, why_not_insisted
from .excitation import Excitation
from .passes import Normalised, Statistics, to_map

Gate = Callable[[Tensor], Tensor]


def plain_se_tail(
    x: Tensor,
    identity: Tensor,
    norm: nn.Module,
    gate: Gate,
    *,
    in_place: bool = False,
    means: Tensor | None = None,
) -> Tensor:
    """:func:`se_tail` by its definition, for any norm and dtype: what the fused backends are compared with.

    Args:
        x, identity, norm, gate, means: of :func:`se_tail`.
        in_place: whether norm(x) may be overwritten: there are no gradients, and no hook holds it.
    """
    y = norm(x)
    z = y.mean((2, 3)) if means is None else norm(to_map(means.to(x.dtype))).flatten(1)
    gates = gate(z).to(y.dtype)
    return scale_add(y, gates, identity, in_place=in_place and y is not x).relu_()


def scale_add(y: Tensor, gates: Tensor, identity: Tensor, *, in_place: bool = False) -> Tensor:
    """y * gates + identity.

    Args:
        y: (N, C, H, W).
        gates: (N, C), of the dtype of y.
        identity: as y, or of another dtype.
        in_place: whether y may be overwritten.
    """
    gates = to_map(gates)
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
    means: Tensor | None = None,
) -> Tensor:
    """relu(y * gate(z) + identity), where y = norm(x) and z is the mean of y over H and W.

    Args:
        x: (N, C, H, W), output of a branch's last convolution; float16, bfloat16, float32 or
            float64, contiguous or channels_last (other strides are copied).
        identity: the shortcut, of the same shape and dtype.
        norm: BatchNorm2d or SyncBatchNorm in any mode, whose running statistics are updated as by
            calling it; Identity if batch norm is folded into the convolution; others are not fused.
        gate: :class:`Excitation`, or a module or function from z to gates, both (N, C); under autocast it may return
            another dtype than that of x, in which it gets z.
        backend: one of ``BACKENDS``, None for :func:`choose`.
        fusible: True if the caller knows that :func:`why_not_fused` has no reason; it is not asked again.
        means: (N, C), of any floating dtype: the means of x over H and W, if the caller knows them, the norm has
            constant statistics, and nothing needs gradients. x is then read once less. None to compute them.

    Returns:
        (N, C, H, W), of the dtype of x; 'plain' promotes it with that of identity if they differ.

    Note:
        All processes that share a SyncBatchNorm have to take the same backend: hooks on the norm of some
        of them only, or an empty batch, would mix up what they exchange.

    Raises:
        ValueError: unknown backend, or one that has no such norm, maps or device; parameters for other maps or on
            another device; batch statistics of a single element; means of other maps, or where x has to be read.
        RuntimeError: in backward, for second derivatives, which only 'plain' has.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f'backend={backend!r}: choose one of {BACKENDS}')
    if means is not None and (torch.is_grad_enabled() or not is_affine(norm)):
        raise ValueError('means: they are for norms with constant statistics, without gradients; leave them out')
    if means is not None and (means.shape != x.shape[:2] or means.device != x.device):
        raise ValueError(
            f'means: {tuple(means.shape)} on {means.device}, but x is {tuple(x.shape)} on {x.device}: give a mean for '
            'each channel of each image'
        )
    why = None if fusible else why_not_fused(norm)
    if why and backend not in (None, 'plain'):
        raise ValueError(f"backend={backend!r}: {why}; choose 'plain'")
    if backend is None or not isinstance(x, Tensor):
        backend = 'plain' if why else choose_fusible(x, identity, norm).backend
    elif backend != 'plain':
        why = why_not_insisted(backend, x, identity)
        if why:
            raise ValueError(f"backend={backend!r}: {why}; choose 'plain', or None for what is possible")
    if backend == 'plain':
        in_place = why is None and not (torch.is_grad_enabled() or torch.jit.is_tracing())
        return plain_se_tail(x, identity, norm, gate, in_place=in_place, means=means)

    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    ops, (weight, bias, statistics) = _backend(backend), _batch_norm_arguments(x, norm)
    _check_parameters(x, weight, bias, statistics, gate)
    with torch.cuda.device_of(x) if backend == 'triton' else nullcontext():  # kernels run on the current GPU
        if backend == 'triton' and isinstance(gate, Excitation) and gate.has_kernels and statistics.group is None:
            out, gates = ExcitedTail.apply(ops, x, identity, weight, bias, statistics, means, gate.factor, *gate[:4])
            gate.show(gates)
            return out
        if not torch.is_grad_enabled():
            z, normalised = normalised_means(ops, x, weight, bias, statistics, means)
            return ops.scale_add_relu(x, normalised.vectors, _gates(gate, z, x.dtype), identity)
        x, vectors, z = NormalisedMeans.apply(ops, x, weight, bias, statistics)
        return ScaleAddReLU.apply(ops, x, vectors, _gates(gate, z, x.dtype), identity)


def _gates(gate: Gate, z: Tensor, dtype: torch.dtype) -> Tensor:
    """Gates (N, C) of the dtype of z, from a gate that takes ``dtype`` and may give one number for all channels."""
    return gate(z.to(dtype)).to(z.dtype).expand_as(z)


def _check_parameters(x: Tensor, weight: Tensor, bias: Tensor, statistics: Statistics, gate: Gate) -> None:
    """Raise ValueError for parameters of other maps, beyond whose ends kernels would read and write."""
    channels = x.shape[1]
    shapes = [
        ('weight of the norm', weight, (channels,)),
        ('bias of the norm', bias, (channels,)),
        ('running mean of the norm', statistics.running_mean, (channels,)),
        ('running variance of the norm', statistics.running_var, (channels,)),
    ]
    if isinstance(gate, Excitation):
        squeezed = len(gate.w1)
        expected = dict(w1=(squeezed, channels), b1=(squeezed,), w2=(channels, squeezed), b2=(channels,))
        shapes += [(f'{name} of the gate', getattr(gate, name), shape) for name, shape in expected.items()]
    for name, found, shape in shapes:
        if found is not None and (found.shape != shape or found.device != x.device):
            raise ValueError(
                f'{name}: {tuple(found.shape)} on {found.device}, but maps of shape {tuple(x.shape)} on {x.device} '
                f'need {shape}'
            )


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
    batch, group = norm.training or norm.running_mean is None, process_group(norm)
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
    ops: ModuleType, x: Tensor, weight: Tensor, bias: Tensor, statistics: Statistics, means: Tensor | None = None
) -> tuple[Tensor, Normalised]:
    """All that comes before the gates, see :func:`passes.normalise`; ``means`` of :func:`se_tail`."""
    moments = ops.row_moments(x, variance=statistics.batch) if means is None else ops.known_moments(x, means)
    return ops.normalise(moments, weight, bias, statistics)


class ExcitedTail(Function):
    """The whole tail, with an :class:`Excitation` of which the kernels compute the gates. Returns the gates as well,
    which have no gradients."""

    @staticmethod
    def forward(ctx, ops, x, identity, weight, bias, statistics, means, factor, w1, b1, w2, b2):
        z, (vectors, mean, invstd, total) = normalised_means(ops, x, weight, bias, statistics, means)
        gates, hidden = ops.gates(z, Excitation(w1, b1, w2, b2, factor))
        out = ops.scale_add_relu(x, vectors, gates, identity)
        ctx.save_for_backward(x, out, vectors, mean, invstd, gates, hidden, w1, w2)
        ctx.ops, ctx.factor, ctx.batch, ctx.total, ctx.bias = ops, factor, statistics.batch, total, b1 is not None
        ctx.dtypes = weight.dtype, w1.dtype
        ctx.mark_non_differentiable(gates)
        return out, gates

    @staticmethod
    def backward(ctx, grad, _):
        _refuse_second_derivatives()
        x, out, vectors, mean, invstd, gates, hidden, w1, w2 = ctx.saved_tensors
        g, message, dz, weights = ctx.ops.excitation_gradients(
            grad, out, x, vectors, gates, hidden, Excitation(w1, None, w2, None, ctx.factor)
        )
        normalised, count = Normalised(vectors, mean, invstd, ctx.total), x.shape[2] * x.shape[3]
        k, *norm = ctx.ops.coefficients(message, dz, normalised, count=count, batch=ctx.batch, group=None)
        dx = ctx.ops.input_gradient(g, x, vectors[0], k) if ctx.needs_input_grad[1] else None
        dweight, dbias = (tensor.to(ctx.dtypes[0]) for tensor in norm)
        dw1, db1, dw2, db2 = (tensor.to(ctx.dtypes[1]) for tensor in weights)
        biases = (db1, db2) if ctx.bias else (None, None)
        return None, dx, g, dweight, dbias, None, None, None, dw1, biases[0], dw2, biases[1]


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

"""The passes of the SE residual tail by Triton kernels, for GPUs.

Functions are those of :mod:`passes`, with the same arguments and results. All maps of a call are
brought to the layout of x, contiguous or channels_last.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from . import excitation_kernels, map_kernels, passes, row_kernels
from .excitation import Excitation
from .passes import Normalised, Rows, Statistics, accumulation_dtype

GATE_ROWS = 256  # of a program of the kernel of the gates' gradients
WEIGHTS_TILE = dict(BLOCK_C=32, BLOCK_R=32)  # of the kernel of the excitation's weights
PROGRAMS = 1024  # that a reduction is split into if it has fewer rows; several for each multiprocessor


def _accumulator(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _like(x: Tensor, other: Tensor) -> Tensor:
    """``other`` in the layout of x."""
    return other.contiguous() if x.is_contiguous() else other.contiguous(memory_format=torch.channels_last)


def _grid(x: Tensor) -> tuple[tuple[int, int], dict]:
    """Programs and the arguments that all kernels of maps share: (images x blocks of channels, splits of positions).

    A tile is 2048 elements, long where memory is contiguous: larger ones need so many registers that few warps are
    resident, see docs/kernels.md.
    """
    num_images, channels, height, width = x.shape
    size = height * width
    if x.is_contiguous():
        strides = size, 1
        block_p = min(triton.next_power_of_2(size), 1024)
        block_c = min(triton.next_power_of_2(channels), max(1, 1024 // block_p) * 2)
    else:
        strides = 1, channels
        block_c = min(triton.next_power_of_2(channels), 64)
        block_p = min(triton.next_power_of_2(size), 2048 // block_c)
    blocks = num_images * triton.cdiv(channels, block_c)
    splits = max(1, min(PROGRAMS // blocks, triton.cdiv(size, 4 * block_p)))
    span = triton.cdiv(triton.cdiv(size, splits), block_p) * block_p
    arguments = dict(
        C=channels,
        size=size,
        rows=num_images * channels,
        span=span,
        channel_stride=strides[0],
        position_stride=strides[1],
        ACC=_accumulator(x),
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return (blocks, triton.cdiv(size, span)), arguments


def _vector_grid(rows: Tensor) -> tuple[tuple[int], dict]:
    """The same for kernels of (N, C): blocks of channels."""
    num_images, channels = rows.shape
    block_n = min(triton.next_power_of_2(num_images), 64)
    arguments = dict(N=num_images, C=channels, rows=rows.numel(), ACC=_accumulator(rows), BLOCK_N=block_n, BLOCK_C=16)
    return (triton.cdiv(channels, 16),), arguments


class Spans(NamedTuple):
    """Moments of the spans of every row, which :func:`normalise` merges."""

    mean: Tensor  # (splits, N, C)
    m2: Tensor  # (splits, N, C), sums of squared deviations
    span: int  # elements of a span, fewer in the last one
    size: int  # elements of a row

    def rows(self) -> Rows:
        """The moments of the rows."""
        counts = torch.full_like(self.mean[:, :1, :1], self.span)
        counts[-1] = self.size - (len(counts) - 1) * self.span
        mean = self.mean[0] + ((self.mean - self.mean[0]) * counts).sum(0) / self.size
        var = (self.m2 + (self.mean - mean).square() * counts).sum(0) / self.size
        return Rows(mean, var, self.size)


def row_moments(x: Tensor, variance: bool) -> Spans:
    """:func:`passes.row_moments`, of spans; always with the variance."""
    grid, arguments = _grid(x)
    mean, m2 = x.new_empty((2, grid[1], *x.shape[:2]), dtype=accumulation_dtype(x))
    map_kernels._moments_kernel[grid](x, mean, m2, **arguments)
    return Spans(mean, m2, arguments['span'], arguments['size'])


def known_moments(x: Tensor, means: Tensor) -> Spans:
    """:func:`passes.known_moments`, of one span; its squares are never read."""
    mean, size = means.to(accumulation_dtype(x)).contiguous()[None], x.shape[2] * x.shape[3]
    return Spans(mean, mean, size, size)


def normalise(spans: Spans, weight: Tensor, bias: Tensor, statistics: Statistics) -> tuple[Tensor, Normalised]:
    """:func:`passes.normalise`."""
    if statistics.group is not None:
        return passes.normalise(spans.rows(), weight, bias, statistics)
    running_mean, running_var, batch, momentum, eps, _ = statistics
    splits, num_images, channels = spans.mean.shape
    total = spans.size * num_images
    vectors, z = spans.mean.new_empty((3, num_images, channels)), torch.empty_like(spans.mean[0])
    mean, invstd = z.new_empty(channels), z.new_empty(channels)
    unused = mean  # in place of tensors that the kernel does not touch
    grid, arguments = _vector_grid(z)
    row_kernels._normalise_kernel[grid](
        spans.mean,
        spans.m2,
        weight.contiguous(),
        bias.contiguous(),
        unused if running_mean is None else running_mean,
        unused if running_var is None else running_var,
        vectors,
        z,
        mean,
        invstd,
        splits=splits,
        span=spans.span,
        size=spans.size,
        unbiased=total / max(total - 1, 1),
        momentum=0.0 if momentum is None else momentum,
        eps=eps,
        BATCH=batch,
        UPDATE=momentum is not None,
        **arguments,
    )
    return z, Normalised(vectors, mean, invstd, total)


def scale_add_relu(x: Tensor, vectors: Tensor, gates: Tensor, identity: Tensor) -> Tensor:
    """:func:`passes.scale_add_relu`."""
    out = torch.empty_like(x)
    grid, arguments = _grid(x)
    map_kernels._scale_add_relu_kernel[grid](x, _like(x, identity), vectors, gates.contiguous(), out, **arguments)
    return out


def _excitation_arguments(z: Tensor, excitation: Excitation) -> dict:
    """Arguments that the kernels of the excitation share."""
    squeezed, channels = excitation.w1.shape
    block_r = triton.next_power_of_2(squeezed)
    block_c = max(1, min(triton.next_power_of_2(channels), 4096 // block_r))
    return dict(C=channels, R=squeezed, factor=excitation.factor, ACC=_accumulator(z), BLOCK_C=block_c, BLOCK_R=block_r)


def gates(z: Tensor, excitation: Excitation) -> tuple[Tensor, Tensor]:
    """Gates (N, C) for z (N, C), and what is between the two layers, (N, R), for :func:`excitation_gradients`."""
    w1, b1, w2, b2 = excitation[:4]
    found, hidden = torch.empty_like(z), z.new_empty(len(z), len(w1))
    unused = z  # in place of biases
    excitation_kernels._gates_kernel[(len(z),)](
        z,
        w1.contiguous(),
        unused if b1 is None else b1.contiguous(),
        w2.contiguous(),
        unused if b2 is None else b2.contiguous(),
        hidden,
        found,
        BIAS=b1 is not None,
        **_excitation_arguments(z, excitation),
    )
    return found, hidden


def excitation_gradients(
    grad: Tensor, out: Tensor, x: Tensor, vectors: Tensor, gates: Tensor, hidden: Tensor, excitation: Excitation
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Like :func:`gate_gradients`, with backward of :func:`gates`.

    Returns:
        g and message as there; gradient (N, C) of z; gradients of w1, b1, w2, b2.
    """
    g, sums = _masked_sums(grad, out, x, vectors[0])
    w1, w2 = excitation.w1, excitation.w2
    message, ds, dz, dhidden = (torch.empty_like(like) for like in (vectors, gates, gates, hidden))
    arguments = _excitation_arguments(gates, excitation)
    excitation_kernels._excitation_gradients_kernel[(len(gates),)](
        sums, vectors, gates, hidden, w1.contiguous(), w2.contiguous(), message, ds, dhidden, dz,
        splits=len(sums), rows=gates.numel(), **arguments,
    )  # fmt: skip
    (squeezed, channels), z = w1.shape, vectors[1]
    dw1, db1 = gates.new_empty(squeezed, channels), gates.new_empty(squeezed)
    dw2, db2 = gates.new_empty(channels, squeezed), gates.new_empty(channels)
    grid = triton.cdiv(channels, WEIGHTS_TILE['BLOCK_C']), triton.cdiv(squeezed, WEIGHTS_TILE['BLOCK_R'])
    sizes = dict(N=len(gates), C=channels, R=squeezed, ACC=arguments['ACC'], **WEIGHTS_TILE)
    excitation_kernels._excitation_weights_kernel[grid](z, hidden, ds, dhidden, dw1, db1, dw2, db2, **sizes)
    return g, message, dz, (dw1, db1, dw2, db2)


def _masked_sums(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient g before ReLU, and (splits, 2, N, C): sums of g and of g * (x - mean) over the spans of every row."""
    g = torch.empty_like(x)
    grid, arguments = _grid(x)
    sums = x.new_empty((grid[1], 2, *mean.shape), dtype=mean.dtype)
    map_kernels._masked_sums_kernel[grid](_like(x, grad), _like(x, out), x, mean, g, sums, **arguments)
    return g, sums


def gate_gradients(
    grad: Tensor, out: Tensor, x: Tensor, vectors: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`passes.gate_gradients`."""
    mean = vectors[0]
    g, sums = _masked_sums(grad, out, x, mean)
    message, dgates = torch.empty_like(vectors), torch.empty_like(mean)
    grid, arguments = (
        (triton.cdiv(mean.numel(), GATE_ROWS),),
        dict(rows=mean.numel(), ACC=_accumulator(mean), BLOCK_C=GATE_ROWS),
    )
    row_kernels._gate_gradients_kernel[grid](
        sums, vectors, gates.contiguous(), message, dgates, splits=len(sums), **arguments
    )
    return g, message, dgates


def coefficients(
    message: Tensor, dz: Tensor, normalised: Normalised, *, count: int, batch: bool, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`passes.coefficients`."""
    if group is not None:
        return passes.coefficients(message, dz, normalised, count=count, batch=batch, group=group)
    vectors, mean, invstd, total = normalised
    k = vectors.new_empty((3 if batch else 2, *dz.shape))
    dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
    grid, arguments = _vector_grid(dz)
    row_kernels._coefficients_kernel[grid](
        message,
        dz.contiguous(),
        vectors,
        mean,
        invstd,
        k,
        dweight,
        dbias,
        count=count,
        total=total,
        BATCH=batch,
        **arguments,
    )
    return k, dweight, dbias


def input_gradient(g: Tensor, x: Tensor, mean: Tensor, k: Tensor) -> Tensor:
    """:func:`passes.input_gradient`."""
    dx = torch.empty_like(x)
    grid, arguments = _grid(x)
    map_kernels._input_gradient_kernel[grid](_like(x, g), x, mean, k, dx, BATCH=len(k) == 3, **arguments)
    return dx

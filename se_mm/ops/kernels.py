"""The passes of the SE residual tail as Triton kernels, for GPUs.

Functions are those of :mod:`passes`, with the same arguments and results. A map is read and
written in tiles of channels x positions of one image, through the strides of its channels and
positions, so that contiguous and channels_last maps share the kernels; all maps of a call are
brought to the layout of x. Sums are float32 (float64 for float64) in an order that depends on
the shape alone: the same call gives the same bits.
"""

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from . import passes
from .passes import accumulation_dtype

PROGRAMS = 1024  # that a reduction is split into if it has fewer rows; several for each multiprocessor


@triton.jit
def _tile(C, channel_stride, BLOCK_C: tl.constexpr):
    """First row and mask of this program's channels, their offset in a map, its image."""
    blocks = tl.cdiv(C, BLOCK_C)
    image = tl.program_id(0) // blocks
    channels = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return image * C + channels, channels < C, channels * channel_stride, image.to(tl.int64)


@triton.jit
def _moments_kernel(
    x, mean_out, m2_out, C, size, rows, span, channel_stride, position_stride,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    row, valid, offset, image = _tile(C, channel_stride, BLOCK_C)
    x += image * C * size
    split = tl.program_id(1)
    start = split * span
    end = tl.minimum(start + span, size)
    # Moments of the difference to any element of the row: with a mean much larger than the deviation,
    # those of x itself would be rounded to the mean's precision.
    pivot = tl.load(x + offset + start * position_stride, valid, 0).to(ACC)
    mean = tl.zeros([BLOCK_C], ACC)
    m2 = tl.zeros([BLOCK_C], ACC)
    for first in range(start, end, BLOCK_P):
        position = first + tl.arange(0, BLOCK_P)
        mask = valid[:, None] & (position < end)[None, :]
        value = tl.load(x + offset[:, None] + position[None, :] * position_stride, mask, 0).to(ACC)
        value = tl.where(mask, value - pivot[:, None], 0)
        before = (first - start).to(ACC)
        count = tl.minimum(end - first, BLOCK_P).to(ACC)
        tile_mean = tl.sum(value, 1) / count
        centred = tl.where(mask, value - tile_mean[:, None], 0)
        delta = tile_mean - mean
        mean += delta * (count / (before + count))
        m2 += tl.sum(centred * centred, 1) + delta * delta * (before * count / (before + count))
    tl.store(mean_out + split * rows + row, pivot + mean, valid)
    tl.store(m2_out + split * rows + row, m2, valid)


@triton.jit
def _normalise_kernel(
    mean, var, weight, bias, running_mean, running_var, vectors, z_out, m_out, invstd_out,
    N, C, rows, unbiased, momentum, eps,
    BATCH: tl.constexpr, UPDATE: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channel < C
    if BATCH:
        pivot = tl.load(mean + channel, valid, 0)  # differences keep more digits than their sum
        m = tl.zeros([BLOCK_C], ACC)
        for first in range(0, N, BLOCK_N):
            image = first + tl.arange(0, BLOCK_N)
            mask = (image < N)[:, None] & valid[None, :]
            row_mean = tl.load(mean + image[:, None] * C + channel[None, :], mask, 0)
            m += tl.sum(tl.where(mask, row_mean - pivot[None, :], 0), 0)
        m = pivot + m / N
        v = tl.zeros([BLOCK_C], ACC)
        for first in range(0, N, BLOCK_N):
            image = first + tl.arange(0, BLOCK_N)
            mask = (image < N)[:, None] & valid[None, :]
            at = image[:, None] * C + channel[None, :]
            delta = tl.load(mean + at, mask, 0) - m[None, :]
            v += tl.sum(tl.where(mask, tl.load(var + at, mask, 0) + delta * delta, 0), 0)
        v /= N
        if UPDATE:
            old_mean = tl.load(running_mean + channel, valid, 0).to(ACC)
            old_var = tl.load(running_var + channel, valid, 0).to(ACC)
            tl.store(running_mean + channel, old_mean + momentum * (m - old_mean), valid)
            tl.store(running_var + channel, old_var + momentum * (v * unbiased - old_var), valid)
    else:
        m = tl.load(running_mean + channel, valid, 0).to(ACC)
        v = tl.load(running_var + channel, valid, 0).to(ACC)
    invstd = 1 / tl.sqrt(v + eps)
    tl.store(m_out + channel, m, valid)
    tl.store(invstd_out + channel, invstd, valid)
    scale = tl.load(weight + channel, valid, 0).to(ACC) * invstd
    shift = tl.load(bias + channel, valid, 0).to(ACC)
    for first in range(0, N, BLOCK_N):
        image = first + tl.arange(0, BLOCK_N)
        mask = (image < N)[:, None] & valid[None, :]
        at = image[:, None] * C + channel[None, :]
        row_mean = tl.load(mean + at, mask, 0)
        z = (row_mean - m[None, :]) * scale[None, :] + shift[None, :]
        tl.store(vectors + at, row_mean, mask)
        tl.store(vectors + rows + at, z, mask)
        tl.store(vectors + 2 * rows + at, tl.broadcast_to(scale[None, :], [BLOCK_N, BLOCK_C]), mask)
        tl.store(z_out + at, z, mask)


@triton.jit
def _excite_kernel(
    x, identity, vectors, gates, out, C, size, rows, span, channel_stride, position_stride,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    row, valid, offset, image = _tile(C, channel_stride, BLOCK_C)
    x += image * C * size
    identity += image * C * size
    out += image * C * size
    gate = tl.load(gates + row, valid, 0)
    mean = tl.load(vectors + row, valid, 0)
    shift = tl.load(vectors + rows + row, valid, 0) * gate
    scale = tl.load(vectors + 2 * rows + row, valid, 0) * gate
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, size)
    for first in range(start, end, BLOCK_P):
        position = first + tl.arange(0, BLOCK_P)
        mask = valid[:, None] & (position < end)[None, :]
        at = offset[:, None] + position[None, :] * position_stride
        value = (tl.load(x + at, mask, 0).to(ACC) - mean[:, None]) * scale[:, None] + shift[:, None]
        value += tl.load(identity + at, mask, 0).to(ACC)
        tl.store(out + at, tl.where(value < 0, 0, value), mask)  # not a maximum, which would drop NaN


@triton.jit
def _masked_sums_kernel(
    grad, out, x, mean, g, sums, C, size, rows, span, channel_stride, position_stride,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    row, valid, offset, image = _tile(C, channel_stride, BLOCK_C)
    grad += image * C * size
    out += image * C * size
    x += image * C * size
    g += image * C * size
    row_mean = tl.load(mean + row, valid, 0)
    split = tl.program_id(1)
    start = split * span
    end = tl.minimum(start + span, size)
    sum_g = tl.zeros([BLOCK_C], ACC)
    sum_gx = tl.zeros([BLOCK_C], ACC)
    for first in range(start, end, BLOCK_P):
        position = first + tl.arange(0, BLOCK_P)
        mask = valid[:, None] & (position < end)[None, :]
        at = offset[:, None] + position[None, :] * position_stride
        value = tl.where(tl.load(out + at, mask, 0) <= 0, 0, tl.load(grad + at, mask, 0))
        tl.store(g + at, value, mask)
        value = tl.where(mask, value.to(ACC), 0)
        centred = tl.where(mask, tl.load(x + at, mask, 0).to(ACC) - row_mean[:, None], 0)
        sum_g += tl.sum(value, 1)
        sum_gx += tl.sum(value * centred, 1)
    tl.store(sums + 2 * split * rows + row, sum_g, valid)
    tl.store(sums + (2 * split + 1) * rows + row, sum_gx, valid)


@triton.jit
def _coefficients_kernel(
    message, dz, vectors, m, invstd, k, dweight_out, dbias_out, N, C, rows, count, total,
    BATCH: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channel < C
    channel_mean = tl.load(m + channel, valid, 0)
    inverse = tl.load(invstd + channel, valid, 0)
    scale = tl.load(vectors + 2 * rows + channel, valid, 0)
    dbias = tl.zeros([BLOCK_C], ACC)
    dweight = tl.zeros([BLOCK_C], ACC)
    for first in range(0, N, BLOCK_N):
        image = first + tl.arange(0, BLOCK_N)
        mask = (image < N)[:, None] & valid[None, :]
        at = image[:, None] * C + channel[None, :]
        gate = tl.load(message + at, mask, 0)
        dy = gate * tl.load(message + rows + at, mask, 0) + tl.load(dz + at, mask, 0)
        zhat = (tl.load(vectors + at, mask, 0) - channel_mean[None, :]) * inverse[None, :]
        dyx = gate * tl.load(message + 2 * rows + at, mask, 0) * inverse[None, :] + dy * zhat
        dbias += tl.sum(dy, 0)
        dweight += tl.sum(tl.where(mask, dyx, 0), 0)
    tl.store(dbias_out + channel, dbias, valid)
    tl.store(dweight_out + channel, dweight, valid)
    for first in range(0, N, BLOCK_N):
        image = first + tl.arange(0, BLOCK_N)
        mask = (image < N)[:, None] & valid[None, :]
        at = image[:, None] * C + channel[None, :]
        tl.store(k + at, tl.load(message + at, mask, 0) * scale[None, :], mask)
        k1 = tl.load(dz + at, mask, 0) / count
        if BATCH:
            zhat = (tl.load(vectors + at, mask, 0) - channel_mean[None, :]) * inverse[None, :]
            k1 -= (dbias[None, :] + zhat * dweight[None, :]) / total
            k2 = tl.broadcast_to((-scale * inverse * dweight / total)[None, :], [BLOCK_N, BLOCK_C])
            tl.store(k + 2 * rows + at, k2, mask)
        tl.store(k + rows + at, scale[None, :] * k1, mask)


@triton.jit
def _input_gradient_kernel(
    g, x, mean, k, dx, C, size, rows, span, channel_stride, position_stride,
    BATCH: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    row, valid, offset, image = _tile(C, channel_stride, BLOCK_C)
    g += image * C * size
    x += image * C * size
    dx += image * C * size
    row_mean = tl.load(mean + row, valid, 0)
    k0 = tl.load(k + row, valid, 0)
    k1 = tl.load(k + rows + row, valid, 0)
    if BATCH:
        k2 = tl.load(k + 2 * rows + row, valid, 0)
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, size)
    for first in range(start, end, BLOCK_P):
        position = first + tl.arange(0, BLOCK_P)
        mask = valid[:, None] & (position < end)[None, :]
        at = offset[:, None] + position[None, :] * position_stride
        value = tl.load(g + at, mask, 0).to(ACC) * k0[:, None] + k1[:, None]
        if BATCH:
            value += (tl.load(x + at, mask, 0).to(ACC) - row_mean[:, None]) * k2[:, None]
        tl.store(dx + at, value, mask)


def _accumulator(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _like(x: Tensor, other: Tensor) -> Tensor:
    """``other`` in the layout of x."""
    return other.contiguous() if x.is_contiguous() else other.contiguous(memory_format=torch.channels_last)


def _grid(x: Tensor) -> tuple[tuple[int, int], dict]:
    """Programs and their tiles: (images x blocks of channels, splits of the positions).

    A tile is 2048 to 4096 elements, long where memory is contiguous.
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
        block_p = min(triton.next_power_of_2(size), 4096 // block_c)
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


def _vector_grid(num_images: int, channels: int) -> tuple[tuple[int], dict]:
    block_n = min(triton.next_power_of_2(num_images), 64)
    return (triton.cdiv(channels, 16),), dict(BLOCK_N=block_n, BLOCK_C=16)


def row_moments(x: Tensor, variance: bool) -> tuple[Tensor, Tensor | None]:
    grid, arguments = _grid(x)
    splits, span, size = grid[1], arguments['span'], arguments['size']
    mean = x.new_empty((splits, *x.shape[:2]), dtype=accumulation_dtype(x))
    m2 = torch.empty_like(mean)
    _moments_kernel[grid](x, mean, m2, **arguments)
    if splits == 1:
        return mean[0], m2[0] / size if variance else None
    counts = torch.full((splits, 1, 1), span, dtype=mean.dtype, device=x.device)
    counts[-1] = size - (splits - 1) * span
    total_mean = mean[0] + ((mean - mean[0]) * counts).sum(0) / size
    return total_mean, (m2 + (mean - total_mean).square() * counts).sum(0) / size if variance else None


def normalise(
    mean: Tensor,
    var: Tensor | None,
    count: int,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float | None,
    eps: float,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    if group is not None:
        return passes.normalise(mean, var, count, weight, bias, running_mean, running_var, momentum, eps, group)
    num_images, channels = mean.shape
    total = count * num_images
    vectors, z = mean.new_empty((3, *mean.shape)), torch.empty_like(mean)
    m, invstd = mean.new_empty(channels), mean.new_empty(channels)
    grid, blocks = _vector_grid(num_images, channels)
    unused = m  # in place of arguments that the kernel does not touch
    _normalise_kernel[grid](
        mean,
        unused if var is None else var,
        weight,
        bias,
        unused if running_mean is None else running_mean,
        unused if running_var is None else running_var,
        vectors,
        z,
        m,
        invstd,
        num_images,
        channels,
        mean.numel(),
        total / max(total - 1, 1),
        0.0 if momentum is None else momentum,
        eps,
        BATCH=var is not None,
        UPDATE=momentum is not None,
        ACC=_accumulator(mean),
        **blocks,
    )
    return vectors, z, m, invstd, total


def excite(x: Tensor, vectors: Tensor, gates: Tensor, identity: Tensor) -> Tensor:
    out = torch.empty_like(x)
    grid, arguments = _grid(x)
    _excite_kernel[grid](x, _like(x, identity), vectors, gates.contiguous(), out, **arguments)
    return out


def masked_sums(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    g = torch.empty_like(x)
    grid, arguments = _grid(x)
    sums = x.new_empty((grid[1], 2, *mean.shape), dtype=mean.dtype)
    _masked_sums_kernel[grid](_like(x, grad), _like(x, out), x, mean, g, sums, **arguments)
    return g, sums[0] if len(sums) == 1 else sums.sum(0)


def coefficients(
    message: Tensor,
    dz: Tensor,
    vectors: Tensor,
    m: Tensor,
    invstd: Tensor,
    count: int,
    total: int,
    batch_statistics: bool,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if group is not None:
        return passes.coefficients(message, dz, vectors, m, invstd, count, total, batch_statistics, group)
    num_images, channels = dz.shape
    k = dz.new_empty((3 if batch_statistics else 2, num_images, channels))
    dweight, dbias = torch.empty_like(m), torch.empty_like(m)
    grid, blocks = _vector_grid(num_images, channels)
    _coefficients_kernel[grid](
        message,
        dz.contiguous(),
        vectors,
        m,
        invstd,
        k,
        dweight,
        dbias,
        num_images,
        channels,
        num_images * channels,
        count,
        total,
        BATCH=batch_statistics,
        ACC=_accumulator(dz),
        **blocks,
    )
    return k, dweight, dbias


def input_gradient(g: Tensor, x: Tensor, mean: Tensor, k: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    grid, arguments = _grid(x)
    _input_gradient_kernel[grid](_like(x, g), x, mean, k, dx, BATCH=len(k) == 3, **arguments)
    return dx

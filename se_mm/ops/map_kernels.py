"""Triton kernels of the maps of a SE residual tail; :mod:`triton_passes` launches them.

Maps are (N, C, H, W) in float16, bfloat16, float32 or float64; all maps of a call have one dtype and
one layout. They are read and written in tiles of channels x positions of one image, through the
strides of channels and positions, so that contiguous and channels_last maps share the kernels. Sums
are taken in an order that depends on the shape alone: the same call gives the same bits.

ACC is float64 for float64 maps, else float32; tensors of ACC are contiguous. A row is one channel of
one image. The kernels run on the grid (N * ceil(C / BLOCK_C), splits) with splits = ceil(size / span):
program (i, j) takes BLOCK_C rows of one image, and of them the j-th span of positions. They share these
arguments:

    C: channels.
    size: positions of a map, H * W.
    rows: N * C.
    span: positions of a program, a multiple of BLOCK_P.
    channel_stride, position_stride: elements from one channel, or position, to the next.
    BLOCK_C, BLOCK_P: channels and positions of a tile.
"""

import triton
import triton.language as tl


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
    """Mean and squared deviations of rows (Welford). A program writes those of its span alone.

    Args:
        x: map.
        mean_out: (splits, N, C) ACC, written: mean.
        m2_out: (splits, N, C) ACC, written: sum of squared deviations from that mean.
    """
    row, valid, offset, image = _tile(C, channel_stride, BLOCK_C)
    x += image * C * size
    split = tl.program_id(1)
    start = split * span
    end = tl.minimum(start + span, size)
    # Moments of the difference to any element of the row: with a mean much larger than the deviation,
    # those of x itself would be rounded to the mean's precision.
    pivot = tl.load(x + offset + start * position_stride, valid, 0).to(ACC)
    # Every element of the tile has moments of its own, which are merged once: merging is exchange between threads.
    means = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    squares = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for first in range(start, end, BLOCK_P):
        position = first + tl.arange(0, BLOCK_P)
        mask = valid[:, None] & (position < end)[None, :]
        value = tl.load(x + offset[:, None] + position[None, :] * position_stride, mask, 0).to(ACC) - pivot[:, None]
        delta = tl.where(mask, value - means, 0)
        means += delta * (1 / ((first - start) // BLOCK_P + 1).to(ACC))
        squares += delta * (value - means)
    count = tl.cdiv(end - start - tl.arange(0, BLOCK_P), BLOCK_P).to(ACC)[None, :]  # of every element
    mean = tl.sum(means * count, 1) / (end - start).to(ACC)
    delta = tl.where(count > 0, means - mean[:, None], 0)
    m2 = tl.sum(squares + delta * delta * count, 1)
    tl.store(mean_out + split * rows + row, pivot + mean, valid)
    tl.store(m2_out + split * rows + row, m2, valid)


@triton.jit
def _scale_add_relu_kernel(
    x, identity, vectors, gates, out, C, size, rows, span, channel_stride, position_stride,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """out = relu(gates * y + identity) with y = slope * (x - mean) + z.

    Args:
        x, identity: maps.
        vectors: (3, N, C) ACC: mean, z, slope of the rows.
        gates: (N, C) ACC.
        out: map, written.
    """
    row, valid, offset, image = _tile(C, channel_stride, BLOCK_C)
    x += image * C * size
    identity += image * C * size
    out += image * C * size
    gate = tl.load(gates + row, valid, 0)
    mean = tl.load(vectors + row, valid, 0)
    shift = tl.load(vectors + rows + row, valid, 0) * gate
    slope = tl.load(vectors + 2 * rows + row, valid, 0) * gate
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, size)
    for first in range(start, end, BLOCK_P):
        position = first + tl.arange(0, BLOCK_P)
        mask = valid[:, None] & (position < end)[None, :]
        at = offset[:, None] + position[None, :] * position_stride
        value = (tl.load(x + at, mask, 0).to(ACC) - mean[:, None]) * slope[:, None] + shift[:, None]
        value += tl.load(identity + at, mask, 0).to(ACC)
        tl.store(out + at, tl.where(value < 0, 0, value), mask)  # not a maximum, which would drop NaN


@triton.jit
def _masked_sums_kernel(
    grad, out, x, mean, g, sums, C, size, rows, span, channel_stride, position_stride,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The gradient g before ReLU and its sums over rows. A program writes the sums of its span alone.

    Args:
        grad: map, gradient of out.
        out: map, output of the tail.
        x: map, input of the tail.
        mean: (N, C) ACC, mean of the rows of x.
        g: map, written: grad where out is positive, else 0.
        sums: (splits, 2, N, C) ACC, written: sums of g and of g * (x - mean).
    """
    row, valid, offset, image = _tile(C, channel_stride, BLOCK_C)
    grad += image * C * size
    out += image * C * size
    x += image * C * size
    g += image * C * size
    row_mean = tl.load(mean + row, valid, 0)
    split = tl.program_id(1)
    start = split * span
    end = tl.minimum(start + span, size)
    sum_g = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    sum_gx = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for first in range(start, end, BLOCK_P):
        position = first + tl.arange(0, BLOCK_P)
        mask = valid[:, None] & (position < end)[None, :]
        at = offset[:, None] + position[None, :] * position_stride
        value = tl.where(tl.load(out + at, mask, 0) <= 0, 0, tl.load(grad + at, mask, 0))
        tl.store(g + at, value, mask)
        value = tl.where(mask, value.to(ACC), 0)
        centred = tl.where(mask, tl.load(x + at, mask, 0).to(ACC) - row_mean[:, None], 0)
        sum_g += value
        sum_gx += value * centred
    tl.store(sums + 2 * split * rows + row, tl.sum(sum_g, 1), valid)
    tl.store(sums + (2 * split + 1) * rows + row, tl.sum(sum_gx, 1), valid)


@triton.jit
def _input_gradient_kernel(
    g, x, mean, k, dx, C, size, rows, span, channel_stride, position_stride,
    BATCH: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = k0 * g + k1 + k2 * (x - mean); without BATCH there is no k2.

    Args:
        g: map, gradient before ReLU.
        x: map, input of the tail.
        mean: (N, C) ACC, mean of the rows of x.
        k: (3, N, C) ACC, or (2, N, C) without BATCH.
        dx: map, written: gradient of x.
    """
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

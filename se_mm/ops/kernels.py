"""Triton kernels of the SE residual tail, for GPUs; :mod:`triton_passes` launches them.

Maps are (N, C, H, W) in float16, bfloat16, float32 or float64; all maps of a call have one dtype and
one layout. They are read and written in tiles of channels x positions of one image, through the
strides of channels and positions, so that contiguous and channels_last maps share the kernels. Sums
are taken in an order that depends on the shape alone: the same call gives the same bits.

ACC is float64 for float64 maps, else float32; tensors of ACC are contiguous. A row is one channel of
one image. Kernels of maps run on the grid (N * ceil(C / BLOCK_C), splits) with splits = ceil(size / span):
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
    count = tl.maximum(tl.cdiv(end - start - tl.arange(0, BLOCK_P), BLOCK_P), 0).to(ACC)[None, :]
    mean = tl.sum(means * count, 1) / (end - start).to(ACC)
    delta = means - mean[:, None]
    m2 = tl.sum(squares + delta * delta * count, 1)
    tl.store(mean_out + split * rows + row, pivot + mean, valid)
    tl.store(m2_out + split * rows + row, m2, valid)


@triton.jit
def _merged_moments(mean, m2, at, mask, splits, span, size, rows, SQUARES: tl.constexpr, ACC: tl.constexpr):
    """Mean and biased variance of rows from the moments of their spans, see :func:`_moments_kernel`."""
    pivot = tl.load(mean + at, mask, 0)  # differences keep more digits than their sum
    row_mean = tl.zeros_like(pivot)
    for split in range(splits):
        count = tl.minimum(size - split * span, span).to(ACC)
        row_mean += (tl.load(mean + split * rows + at, mask, 0) - pivot) * count
    row_mean = pivot + row_mean / size
    var = tl.zeros_like(pivot)
    if SQUARES:
        for split in range(splits):
            count = tl.minimum(size - split * span, span).to(ACC)
            delta = tl.load(mean + split * rows + at, mask, 0) - row_mean
            var += tl.load(m2 + split * rows + at, mask, 0) + delta * delta * count
        var /= size
    return row_mean, var


@triton.jit
def _normalise_kernel(
    mean, m2, weight, bias, running_mean, running_var, vectors, z_out, m_out, invstd_out,
    N, C, rows, splits, span, size, unbiased, momentum, eps,
    BATCH: tl.constexpr, UPDATE: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Batch norm of the rows' means. Grid (ceil(C / BLOCK_C),): a program takes BLOCK_C channels of all images.

    Args:
        mean: (splits, N, C) ACC, mean of the spans of the rows.
        m2: (splits, N, C) ACC, their sums of squared deviations; read if BATCH.
        weight, bias: (C,), of any dtype.
        running_mean, running_var: (C,), of any dtype; written if UPDATE, read if UPDATE or not BATCH.
        vectors: (3, N, C) ACC, written: mean of the row, z, slope, with which y = slope * (x - mean) + z.
        z_out: (N, C) ACC, written: z once more.
        m_out, invstd_out: (C,) ACC, written: mean and inverse deviation of the channels.
        N: images.
        splits, span, size: of :func:`_moments_kernel`.
        unbiased: M / (M - 1) for the M elements of a channel.
        momentum, eps: of batch norm.
        BATCH: whether to take the statistics of the batch, else the running ones.
        UPDATE: whether to update the running ones.
        BLOCK_N: images of a tile.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channel < C
    if BATCH:
        pivot = tl.load(mean + channel, valid, 0)
        m = tl.zeros([BLOCK_C], ACC)
        for first in range(0, N, BLOCK_N):
            image = first + tl.arange(0, BLOCK_N)
            mask = (image < N)[:, None] & valid[None, :]
            at = image[:, None] * C + channel[None, :]
            row_mean, _ = _merged_moments(mean, m2, at, mask, splits, span, size, rows, False, ACC)
            m += tl.sum(tl.where(mask, row_mean - pivot[None, :], 0), 0)
        m = pivot + m / N
        v = tl.zeros([BLOCK_C], ACC)
        for first in range(0, N, BLOCK_N):
            image = first + tl.arange(0, BLOCK_N)
            mask = (image < N)[:, None] & valid[None, :]
            at = image[:, None] * C + channel[None, :]
            row_mean, row_var = _merged_moments(mean, m2, at, mask, splits, span, size, rows, True, ACC)
            delta = row_mean - m[None, :]
            v += tl.sum(tl.where(mask, row_var + delta * delta, 0), 0)
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
    slope = tl.load(weight + channel, valid, 0).to(ACC) * invstd
    shift = tl.load(bias + channel, valid, 0).to(ACC)
    for first in range(0, N, BLOCK_N):
        image = first + tl.arange(0, BLOCK_N)
        mask = (image < N)[:, None] & valid[None, :]
        at = image[:, None] * C + channel[None, :]
        row_mean, _ = _merged_moments(mean, m2, at, mask, splits, span, size, rows, False, ACC)
        z = (row_mean - m[None, :]) * slope[None, :] + shift[None, :]
        tl.store(vectors + at, row_mean, mask)
        tl.store(vectors + rows + at, z, mask)
        tl.store(vectors + 2 * rows + at, tl.broadcast_to(slope[None, :], [BLOCK_N, BLOCK_C]), mask)
        tl.store(z_out + at, z, mask)


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
def _gate_gradients_kernel(
    sums, vectors, gates, message, dgates, splits, rows,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of spans to sums of rows, and the gradient of the gates. Grid (ceil(rows / BLOCK_C),).

    Args:
        sums: (splits, 2, N, C) ACC, of :func:`_masked_sums_kernel`.
        vectors: (3, N, C) ACC: mean, z, slope of the rows.
        gates: (N, C) ACC.
        message: (3, N, C) ACC, written: gates, and the sums of the rows.
        dgates: (N, C) ACC, written.
        splits: number of spans.
        BLOCK_C: rows of a program.
    """
    row = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = row < rows
    sum_g = tl.zeros([BLOCK_C], ACC)
    sum_gx = tl.zeros([BLOCK_C], ACC)
    for split in range(splits):
        sum_g += tl.load(sums + 2 * split * rows + row, valid, 0)
        sum_gx += tl.load(sums + (2 * split + 1) * rows + row, valid, 0)
    z = tl.load(vectors + rows + row, valid, 0)
    slope = tl.load(vectors + 2 * rows + row, valid, 0)
    tl.store(message + row, tl.load(gates + row, valid, 0), valid)
    tl.store(message + rows + row, sum_g, valid)
    tl.store(message + 2 * rows + row, sum_gx, valid)
    tl.store(dgates + row, z * sum_g + slope * sum_gx, valid)


@triton.jit
def _coefficients_kernel(
    message, dz, vectors, m, invstd, k, dweight_out, dbias_out, N, C, rows, count, total,
    BATCH: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What the gradient of x needs. Grid (ceil(C / BLOCK_C),): a program takes BLOCK_C channels of all images.

    Args:
        message: (3, N, C) ACC: gates, and the sums of g and of g * (x - mean) over the rows.
        dz: (N, C) ACC, gradient of z through the gates.
        vectors: (3, N, C) ACC: mean, z, slope of the rows.
        m, invstd: (C,) ACC, mean and inverse deviation of the channels.
        k: (3, N, C) ACC, or (2, N, C) without BATCH, written; see :func:`_input_gradient_kernel`.
        dweight_out, dbias_out: (C,) ACC, written: gradients of batch norm's weight and bias.
        N: images.
        count, total: elements of a row, of a channel.
        BATCH: whether m and invstd depend on x.
        BLOCK_N: images of a tile.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channel < C
    channel_mean = tl.load(m + channel, valid, 0)
    inverse = tl.load(invstd + channel, valid, 0)
    slope = tl.load(vectors + 2 * rows + channel, valid, 0)
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
        tl.store(k + at, tl.load(message + at, mask, 0) * slope[None, :], mask)
        k1 = tl.load(dz + at, mask, 0) / count
        if BATCH:
            zhat = (tl.load(vectors + at, mask, 0) - channel_mean[None, :]) * inverse[None, :]
            k1 -= (dbias[None, :] + zhat * dweight[None, :]) / total
            k2 = tl.broadcast_to((-slope * inverse * dweight / total)[None, :], [BLOCK_N, BLOCK_C])
            tl.store(k + 2 * rows + at, k2, mask)
        tl.store(k + rows + at, slope[None, :] * k1, mask)


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

"""Triton kernels of the rows of a SE residual tail: batch norm and the gates' gradients; :mod:`triton_passes` launches
them.

A row is one channel of one image. :mod:`map_kernels` splits rows into spans, and says what ACC is. Sums are taken in an
order that depends on the shape alone.
"""

import triton
import triton.language as tl


@triton.jit
def _sum_of_splits(first, step, splits, mask):
    """Sum of the values at ``first``, ``first + step`` and so on, one of each split."""
    total = tl.load(first, mask, 0)
    for start in range(1, splits, 8):
        for i in tl.static_range(8):  # unrolled: these loads wait for memory together
            total += tl.load(first + (start + i) * step, mask & (start + i < splits), 0)
    return total


@triton.jit
def _merged_moments(mean, m2, at, mask, splits, span, size, rows, SQUARES: tl.constexpr, ACC: tl.constexpr):
    """Mean and biased variance of rows from the moments of their spans, see :mod:`map_kernels`."""
    pivot = tl.load(mean + at, mask, 0)  # differences keep more digits than their sum
    row_mean = tl.zeros_like(pivot)
    for start in range(1, splits, 4):
        for i in tl.static_range(4):
            count = tl.minimum(size - (start + i) * span, span).to(ACC)
            there = mask & (start + i < splits)
            delta = tl.load(mean + (start + i) * rows + at, there, 0) - pivot
            row_mean += tl.where(there, delta * count, 0)
    row_mean = pivot + row_mean / size
    var = tl.zeros_like(pivot)
    if SQUARES:
        delta = pivot - row_mean
        var = tl.load(m2 + at, mask, 0) + delta * delta * tl.minimum(size, span).to(ACC)
        for start in range(1, splits, 4):
            for i in tl.static_range(4):
                count = tl.minimum(size - (start + i) * span, span).to(ACC)
                there = mask & (start + i < splits)
                delta = tl.load(mean + (start + i) * rows + at, there, 0) - row_mean
                var += tl.where(there, tl.load(m2 + (start + i) * rows + at, there, 0) + delta * delta * count, 0)
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
        splits, span, size: see :mod:`map_kernels`.
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
def _gate_gradients_kernel(
    sums, vectors, gates, message, dgates, splits, rows,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of spans to sums of rows, and the gradient of the gates. Grid (ceil(rows / BLOCK_C),).

    Args:
        sums: (splits, 2, N, C) ACC, of :func:`map_kernels._masked_sums_kernel`.
        vectors: (3, N, C) ACC: mean, z, slope of the rows.
        gates: (N, C) ACC.
        message: (3, N, C) ACC, written: gates, and the sums of the rows.
        dgates: (N, C) ACC, written.
        splits: number of spans.
        BLOCK_C: rows of a program.
    """
    row = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = row < rows
    sum_g = _sum_of_splits(sums + row, 2 * rows, splits, valid)
    sum_gx = _sum_of_splits(sums + rows + row, 2 * rows, splits, valid)
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
        k: (3, N, C) ACC, or (2, N, C) without BATCH, written; see :func:`map_kernels._input_gradient_kernel`.
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

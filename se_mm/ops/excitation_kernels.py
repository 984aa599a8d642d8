"""Triton kernels of the excitation, a layer of gates with ReLU and sigmoid; :mod:`triton_passes` launches them.

Sums are taken in an order that depends on the shape alone: the same call gives the same bits. ACC is float64 for
float64 maps, else float32; tensors of ACC are contiguous. The kernels share these arguments:

    C, R: channels, and the squeezed width.
    rows: N * C.
    factor: of the gates.
    BLOCK_C: channels of a tile.
    BLOCK_R: squeezed channels of a tile; where a program takes an image, at least R.
"""

import triton
import triton.language as tl

from .row_kernels import _sum_of_splits


@triton.jit
def _gates_kernel(
    z, w1, b1, w2, b2, hidden, gates, C, R, factor,
    BIAS: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Gates = factor * sigmoid(w2 hidden + b2) with hidden = relu(w1 z + b1). Grid (N,): a program takes an image.

    Args:
        z: (N, C) ACC.
        w1, b1: (R, C), (R,), of any dtype; b1 and b2 are read if BIAS.
        w2, b2: (C, R), (C,), of any dtype.
        hidden: (N, R) ACC, written.
        gates: (N, C) ACC, written.
        BLOCK_C: channels of a tile.
        BLOCK_R: at least R.
    """
    image = tl.program_id(0)
    inner = tl.arange(0, BLOCK_R)
    small = inner < R
    products = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        value = tl.load(z + image * C + channel, channel < C, 0)
        mask = small[:, None] & (channel < C)[None, :]
        products += tl.load(w1 + inner[:, None] * C + channel[None, :], mask, 0).to(ACC) * value[None, :]
    h = tl.where(small, tl.sum(products, 1), 0)  # an infinite z makes NaN of the weights' zeros beyond R
    if BIAS:
        h += tl.load(b1 + inner, small, 0).to(ACC)
    h = tl.where(h < 0, 0, h)  # not a maximum, which would drop NaN
    tl.store(hidden + image * R + inner, h, small)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        mask = small[:, None] & (channel < C)[None, :]
        s = tl.sum(tl.load(w2 + channel[None, :] * R + inner[:, None], mask, 0).to(ACC) * h[:, None], 0)
        if BIAS:
            s += tl.load(b2 + channel, channel < C, 0).to(ACC)
        tl.store(gates + image * C + channel, factor / (1 + tl.exp(-s)), channel < C)


@triton.jit
def _excitation_gradients_kernel(
    sums, vectors, gates, hidden, w1, w2, message, ds, dhidden, dz, splits, rows, C, R, factor,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """What ``_gate_gradients_kernel`` computes, and backward of :func:`_gates_kernel` but for the weights.

    Grid (N,): a program takes an image.

    Args:
        sums, vectors, gates, message: as there.
        hidden, w1, w2: as of :func:`_gates_kernel`.
        ds: (N, C) ACC, written: gradient before the sigmoid.
        dhidden: (N, R) ACC, written: gradient before the ReLU.
        dz: (N, C) ACC, written.
    """
    image = tl.program_id(0)
    inner = tl.arange(0, BLOCK_R)
    small = inner < R
    products = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        valid = channel < C
        row = image * C + channel
        sum_g = _sum_of_splits(sums + row, 2 * rows, splits, valid)
        sum_gx = _sum_of_splits(sums + rows + row, 2 * rows, splits, valid)
        gate = tl.load(gates + row, valid, 0)
        tl.store(message + row, gate, valid)
        tl.store(message + rows + row, sum_g, valid)
        tl.store(message + 2 * rows + row, sum_gx, valid)
        dgate = tl.load(vectors + rows + row, valid, 0) * sum_g + tl.load(vectors + 2 * rows + row, valid, 0) * sum_gx
        before = dgate * gate * (1 - gate / factor)
        tl.store(ds + row, before, valid)
        mask = small[:, None] & valid[None, :]
        products += tl.load(w2 + channel[None, :] * R + inner[:, None], mask, 0).to(ACC) * before[None, :]
    dh = tl.where(small, tl.sum(products, 1), 0)
    dh = tl.where(tl.load(hidden + image * R + inner, small, 0) <= 0, 0, dh)
    tl.store(dhidden + image * R + inner, dh, small)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        mask = small[:, None] & (channel < C)[None, :]
        value = tl.sum(tl.load(w1 + inner[:, None] * C + channel[None, :], mask, 0).to(ACC) * dh[:, None], 0)
        tl.store(dz + image * C + channel, value, channel < C)


@triton.jit
def _excitation_weights_kernel(
    z, hidden, ds, dhidden, dw1, db1, dw2, db2, N, C, R,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Gradients of weights and biases. Grid (ceil(C / BLOCK_C), ceil(R / BLOCK_R)): a program takes a tile of both.

    Args:
        z, hidden, ds, dhidden: of the kernels above.
        dw1, db1, dw2, db2: of the shapes of the weights and biases, ACC, written.
        N: images.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inner = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid, small = channel < C, inner < R
    weights1 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    weights2 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    bias1 = tl.zeros([BLOCK_R], ACC)
    bias2 = tl.zeros([BLOCK_C], ACC)
    for first in range(0, N, 4):
        for i in tl.static_range(4):  # unrolled: these loads wait for memory together
            image = first + i
            before = tl.load(ds + image * C + channel, valid & (image < N), 0)
            dh = tl.load(dhidden + image * R + inner, small & (image < N), 0)
            weights1 += dh[:, None] * tl.load(z + image * C + channel, valid & (image < N), 0)[None, :]
            weights2 += tl.load(hidden + image * R + inner, small & (image < N), 0)[:, None] * before[None, :]
            bias1 += dh
            bias2 += before
    mask = small[:, None] & valid[None, :]
    tl.store(dw1 + inner[:, None] * C + channel[None, :], weights1, mask)
    tl.store(dw2 + channel[None, :] * R + inner[:, None], weights2, mask)
    if tl.program_id(0) == 0:
        tl.store(db1 + inner, bias1, small)
    if tl.program_id(1) == 0:
        tl.store(db2 + channel, bias2, valid)

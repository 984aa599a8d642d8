"""The passes of the SE residual tail in torch, for the CPU and for torch.compile.

``x``, ``identity``, ``out`` and gradients are (N, C, H, W). A "row" is one channel of one image;
what is known of rows is (N, C), of channels (C,), both float32, or float64 for float64 maps.
Every map is read as few times as separate operations allow: whatever follows the first
operation works in place.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """dtype of statistics and sums of maps like ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def to_map(rows: Tensor) -> Tensor:
    return rows[:, :, None, None]


def row_moments(x: Tensor, variance: bool) -> tuple[Tensor, Tensor | None]:
    """Mean and biased variance of every row; None for a variance that is not asked for."""
    dtype = accumulation_dtype(x)
    if variance and torch.compiler.is_compiling():  # one generated pass
        var, mean = torch.var_mean(x.to(dtype), (2, 3), correction=0)
        return mean, var
    mean = x.mean((2, 3), dtype=dtype)
    if not variance:
        return mean, None
    centred = x - to_map(mean)
    rest = centred.mean((2, 3))  # what rounding left in the mean, which counts where the deviation is much smaller
    return mean + rest, centred.square_().mean((2, 3)).sub_(rest.square())


def gather_statistics(mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of every channel over the processes of ``group``, and their number of elements."""
    local = torch.cat([mean, var, mean.new_tensor([count])])
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, local, group=group)
    gathered = torch.stack(gathered)
    counts, (means, variances) = gathered[:, -1:], gathered[:, :-1].chunk(2, dim=1)
    total = counts.sum()
    mean = means[0] + ((means - means[0]) * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean, var, total


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
    """Batch norm of the rows' means.

    Args:
        mean, var: of the rows; ``var`` None to normalise with the running statistics.
        count: elements of a row.
        momentum: of the update of the running statistics, None for no update.
        group: processes that share batch statistics.

    Returns:
        vectors (3, N, C): ``mean``, its normalised value z and the factor of batch norm;
        z again; mean and inverse deviation of the channels; elements of a channel.
    """
    total = count * len(mean)
    if var is None:
        m, v = running_mean.to(mean.dtype), running_var.to(mean.dtype)
    else:
        m = mean[0] + (mean - mean[0]).mean(0)  # of differences, which keep more digits than their sum
        v = torch.addcmul(var, mean - m, mean - m).mean(0)
        if group is not None:
            m, v, total = gather_statistics(m, v, total, group)
        if momentum is not None:
            running_mean.lerp_(m.to(running_mean.dtype), momentum)
            running_var.lerp_((v * (total / (total - 1))).to(running_var.dtype), momentum)
    invstd = (v + eps).rsqrt()
    scale = weight * invstd
    z = torch.addcmul(bias.to(mean.dtype), mean - m, scale)
    return torch.stack([mean, z, scale.expand_as(z)]), z, m, invstd, total


def affine(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor | None = None) -> Tensor:
    """scale * (x - mean) + shift for every row, ``mean`` None for 0; a new tensor."""
    if torch.compiler.is_compiling() or not x.is_contiguous():
        scaled = x * to_map(scale) if mean is None else (x - to_map(mean)).mul_(to_map(scale))
        return scaled.add_(to_map(shift))
    # Batch norm with given statistics is this in one pass, over the channels of an image: here rows.
    rows = x.view(1, -1, *x.shape[2:])
    scale, shift = scale.flatten(), shift.flatten()
    mean = torch.zeros_like(scale) if mean is None else mean.flatten()
    return torch.batch_norm(rows, scale, shift, mean, torch.ones_like(mean), False, 0.0, 0.0, False).view_as(x)


def excite(x: Tensor, vectors: Tensor, gates: Tensor, identity: Tensor) -> Tensor:
    """relu(gates * y + identity), where y = scale * (x - mean) + z is x after batch norm."""
    mean, z, scale = vectors
    return affine(x, scale * gates, z * gates, mean).add_(identity).relu_().to(x.dtype)


def masked_sums(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient before ReLU, g, and (2, N, C): the sums of g and of g * (x - mean) over every row."""
    g = torch.ops.aten.threshold_backward(grad, out, 0)
    if torch.compiler.is_compiling() or not (g.is_contiguous() and x.is_contiguous()):
        return g, torch.stack([g.sum((2, 3), dtype=mean.dtype), (x - to_map(mean)).mul_(g).sum((2, 3))])
    # The backward of batch norm takes both sums in one pass, over the channels of an image: here rows,
    # or lines of large maps, as it adds one by one and would lose precision.
    height, width = x.shape[2:]
    lines = height if height * width > 4096 else 1
    g_lines, x_lines = (t.view(1, -1, height // lines, width) for t in (g, x))
    means = mean.flatten().repeat_interleave(lines)
    _, sum_gx, sum_g = torch.ops.aten.native_batch_norm_backward(
        g_lines, x_lines, None, None, None, means, torch.ones_like(means), True, 0.0, [False, True, True]
    )
    return g, torch.stack([sum_g, sum_gx]).view(2, *mean.shape, lines).sum(-1)


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
    """What the gradient of x needs.

    Args:
        message: (3, N, C), the gates and :func:`masked_sums`.
        dz: gradient of z through the gate.
        vectors, m, invstd: of :func:`normalise`.
        count, total: elements of a row and of a channel.
        batch_statistics: whether m and invstd depend on x.
        group: processes that share batch statistics.

    Returns:
        k, (2, N, C) or with batch statistics (3, N, C): the gradient of x is
        k0 * g + k1 + k2 * (x - mean); gradients of batch norm's weight and bias.
    """
    (gates, sum_g, sum_gx), (mean, _, scale) = message, vectors
    zhat = (mean - m) * invstd
    dy = torch.addcmul(dz, gates, sum_g)  # sum over the row of the gradient of y
    dyx = gates * sum_gx * invstd + dy * zhat  # the same, of the gradient times normalised x
    dbias, dweight = dy.sum(0), dyx.sum(0)
    k0, k1 = gates * scale, scale * dz / count
    if not batch_statistics:
        return torch.stack([k0, k1]), dweight, dbias
    sums = torch.stack([dbias, dweight])
    if group is not None:
        dist.all_reduce(sums, group=group)
    mean_dy, mean_dyx = sums / total
    k1 = k1 - scale * (mean_dy + zhat * mean_dyx)
    return torch.stack([k0, k1, -scale * invstd * mean_dyx]), dweight, dbias


def input_gradient(g: Tensor, x: Tensor, mean: Tensor, k: Tensor) -> Tensor:
    """k0 * g + k1 + k2 * (x - mean), without the last term if k has no k2."""
    if len(k) == 2:
        return affine(g, k[0], k[1]).to(x.dtype)
    return affine(x, k[2], k[1], mean).addcmul_(g, to_map(k[0])).to(x.dtype)

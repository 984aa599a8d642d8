"""The passes of the SE residual tail in torch, for the CPU and for torch.compile.

``x``, ``identity``, ``out`` and gradients are maps (N, C, H, W). A row is one channel of one
image; what is known of rows is (N, C), of channels (C,), both float32, or float64 for float64
maps. Every map is read as few times as separate operations allow: whatever follows the first
operation works in place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Rows(NamedTuple):
    """Moments of the rows of a map."""

    mean: Tensor  # (N, C)
    var: Tensor | None  # (N, C), biased; None if not asked for
    count: int  # elements of a row


class Statistics(NamedTuple):
    """Which mean and variance batch norm takes, and what becomes of its running ones."""

    running_mean: Tensor | None  # (C,)
    running_var: Tensor | None  # (C,)
    batch: bool  # take those of the batch instead
    momentum: float | None  # of the update of the running ones, None for no update
    eps: float
    group: dist.ProcessGroup | None  # processes that share those of the batch


class Normalised(NamedTuple):
    """Batch norm of x, y = slope * (x - row's mean) + z with z the mean of y over H and W."""

    vectors: Tensor  # (3, N, C): the rows' mean, z, slope
    mean: Tensor  # (C,)
    invstd: Tensor  # (C,), inverse deviation
    total: int | Tensor  # elements of a channel, over all processes


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """dtype of statistics and sums of maps like ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


LONG = 4096  # elements of a row; torch's batch norm adds so many one by one, and would lose precision of longer rows


def images_of(x: Tensor) -> tuple[Tensor, ...] | None:
    """The images (1, C, H, W) of a channels_last map, whose rows torch's batch norm takes for channels in one pass.

    None where it would not do: other layouts, long rows, half precision, which it loses more of, generated code, and
    GPUs, where its backward has no sums without a weight.
    """
    if torch.compiler.is_compiling() or x.is_cuda or x.is_contiguous() or x.dtype != accumulation_dtype(x):
        return None
    return x.split(1) if x.shape[2] * x.shape[3] <= LONG else None


def to_map(rows: Tensor) -> Tensor:
    """(N, C) to (N, C, 1, 1)."""
    return rows.unsqueeze(-1).unsqueeze(-1)


def row_moments(x: Tensor, variance: bool) -> Rows:
    """Moments of every row; without ``variance`` only the mean."""
    dtype, count = accumulation_dtype(x), x.shape[2] * x.shape[3]
    if variance and torch.compiler.is_compiling():  # one generated pass
        var, mean = torch.var_mean(x.to(dtype), (2, 3), correction=0)
        return Rows(mean, var, count)
    if not variance:
        return Rows(x.mean((2, 3), dtype=dtype), None, count)
    if images := images_of(x):
        moments = [torch.batch_norm_update_stats(image, None, None, 0.0) for image in images]
        mean, var = (torch.stack(parts) for parts in zip(*moments))
        return Rows(mean, var, count)
    mean = x.mean((2, 3), dtype=dtype)
    centred = x - to_map(mean)
    rest = centred.mean((2, 3))  # what rounding left in the mean, which counts where the deviation is much smaller
    return Rows(mean + rest, centred.square_().mean((2, 3)).sub_(rest.square()), count)


def known_moments(x: Tensor, means: Tensor) -> Rows:
    """:func:`row_moments` without variance from the rows' means (N, C), without reading x."""
    return Rows(means.to(accumulation_dtype(x)), None, x.shape[2] * x.shape[3])


def gather_statistics(mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) of every channel over the processes of ``group``, and their number of elements."""
    local = torch.cat([mean, var, mean.new_full((1,), count)])  # on a GPU without waiting for it
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, local, group=group)
    gathered = torch.stack(gathered)  # (processes, 2 C + 1)
    counts, (means, variances) = gathered[:, -1:], gathered[:, :-1].chunk(2, dim=1)
    total = counts.sum()
    mean = means[0] + ((means - means[0]) * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean, var, total


def normalise(rows: Rows, weight: Tensor, bias: Tensor, statistics: Statistics) -> tuple[Tensor, Normalised]:
    """Batch norm of the rows' means: z (N, C), and what the following passes need.

    Updates the running statistics. ``weight`` and ``bias`` are (C,).
    """
    running_mean, running_var, batch, momentum, eps, group = statistics
    row_mean, row_var, count = rows
    total = count * len(row_mean)
    if not batch:
        mean, var = running_mean.to(row_mean.dtype), running_var.to(row_mean.dtype)
    else:
        mean = row_mean[0] + (row_mean - row_mean[0]).mean(0)  # of differences, which keep more digits than their sum
        var = torch.addcmul(row_var, row_mean - mean, row_mean - mean).mean(0)
        if group is not None:
            mean, var, total = gather_statistics(mean, var, total, group)
        if momentum is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
    invstd = (var + eps).rsqrt()
    slope = weight * invstd
    z = torch.addcmul(bias.to(mean.dtype), row_mean - mean, slope)
    return z, Normalised(torch.stack([row_mean, z, slope.expand_as(z)]), mean, invstd, total)


def affine(x: Tensor, slope: Tensor, shift: Tensor, mean: Tensor | None = None) -> Tensor:
    """slope * (x - mean) + shift for every row, ``mean`` None for 0; a new map."""
    if images_of(x):
        shift = shift if mean is None else shift - mean * slope  # as batch norm does
        return torch.addcmul(to_map(shift), x, to_map(slope))
    if torch.compiler.is_compiling() or not x.is_contiguous():
        product = x * to_map(slope) if mean is None else (x - to_map(mean)).mul_(to_map(slope))
        return product.add_(to_map(shift))
    # Batch norm with given statistics is this in one pass, over the channels of an image: here rows.
    rows = x.view(1, -1, *x.shape[2:])  # (1, N C, H, W)
    slope, shift = slope.flatten(), shift.flatten()
    mean = torch.zeros_like(slope) if mean is None else mean.flatten()
    return torch.batch_norm(rows, slope, shift, mean, torch.ones_like(mean), False, 0.0, 0.0, False).view_as(x)


def scale_add_relu(x: Tensor, vectors: Tensor, gates: Tensor, identity: Tensor) -> Tensor:
    """relu(gates * y + identity), where y is x after batch norm; ``vectors`` as in :class:`Normalised`."""
    mean, z, slope = vectors
    return affine(x, slope * gates, z * gates, mean).add_(identity).relu_().to(x.dtype)


def gate_gradients(
    grad: Tensor, out: Tensor, x: Tensor, vectors: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the gates, and what comes before.

    Args:
        grad: gradient of ``out``.
        out: of :func:`scale_add_relu`.
        x, vectors, gates: its arguments.

    Returns:
        gradient before ReLU, g, a map; (3, N, C), the gates and the sums of g and of g * (x - mean) over every row;
        gradient (N, C) of the gates.
    """
    mean, z, slope = vectors
    g, sums = masked_sums(grad, out, x, mean)
    return g, torch.cat([gates[None], sums]), torch.addcmul(z * sums[0], slope, sums[1])


def masked_sums(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient before ReLU, g, and (2, N, C): the sums of g and of g * (x - mean) over every row."""
    g = torch.ops.aten.threshold_backward(grad, out, 0)
    images = images_of(x)
    if images and g.is_contiguous(memory_format=torch.channels_last):
        sums = [_batch_norm_sums(*parts) for parts in zip(g.split(1), images, mean)]
        return g, torch.stack([torch.stack(parts) for parts in zip(*sums)])
    if torch.compiler.is_compiling() or x.is_cuda or not (g.is_contiguous() and x.is_contiguous()):
        return g, torch.stack([g.sum((2, 3), dtype=mean.dtype), (x - to_map(mean)).mul_(g).sum((2, 3))])
    # The backward of batch norm takes both sums in one pass, over the channels of an image: here rows,
    # or lines of large maps, as it adds one by one and would lose precision.
    height, width = x.shape[2:]
    lines = height if height * width > LONG else 1
    g_lines, x_lines = (t.view(1, -1, height // lines, width) for t in (g, x))
    means = mean.flatten().repeat_interleave(lines)
    return g, torch.stack(_batch_norm_sums(g_lines, x_lines, means)).view(2, *mean.shape, lines).sum(-1)


def _batch_norm_sums(g: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of g and of g * (x - mean) over every channel of an image, by the backward of batch norm."""
    _, sum_gx, sum_g = torch.ops.aten.native_batch_norm_backward(
        g, x, None, None, None, mean, torch.ones_like(mean), True, 0.0, [False, True, True]
    )
    return sum_g, sum_gx


def coefficients(
    message: Tensor,
    dz: Tensor,
    normalised: Normalised,
    *,
    count: int,
    batch: bool,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the gradient of x needs.

    Args:
        message: (3, N, C), of :func:`gate_gradients`.
        dz: (N, C), gradient of z through the gates.
        normalised: of :func:`normalise`.
        count: elements of a row.
        batch, group: as in :class:`Statistics`.

    Returns:
        k, (2, N, C) or with statistics of the batch (3, N, C): the gradient of x is
        k0 * g + k1 + k2 * (x - row's mean); gradients (C,) of batch norm's weight and bias.
    """
    vectors, mean, invstd, total = normalised
    (gates, sum_g, sum_gx), (row_mean, _, slope) = message, vectors
    zhat = (row_mean - mean) * invstd
    dy = torch.addcmul(dz, gates, sum_g)  # sum over the row of the gradient of y
    dyx = gates * sum_gx * invstd + dy * zhat  # sum over the row of that gradient times normalised x
    dbias, dweight = dy.sum(0), dyx.sum(0)
    k0, k1 = gates * slope, slope * dz / count
    if not batch:
        return torch.stack([k0, k1]), dweight, dbias
    sums = torch.stack([dbias, dweight])
    if group is not None:
        dist.all_reduce(sums, group=group)
    mean_dy, mean_dyx = sums / total
    k1 = k1 - slope * (mean_dy + zhat * mean_dyx)
    return torch.stack([k0, k1, -slope * invstd * mean_dyx]), dweight, dbias


def input_gradient(g: Tensor, x: Tensor, mean: Tensor, k: Tensor) -> Tensor:
    """k0 * g + k1 + k2 * (x - mean), without the last term if k has no k2."""
    if len(k) == 2:
        return affine(g, k[0], k[1]).to(x.dtype)
    return affine(x, k[2], k[1], mean).addcmul_(g, to_map(k[0])).to(x.dtype)

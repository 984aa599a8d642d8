"""Regions of interest (RoIs) pooled to maps of one size.

rois (R, 5) are index of the image, x1, y1, x2, y2 in pixels of the image; times spatial_scale they are pixels of the
maps (N, C, H, W). Results (R, C, pooled height, pooled width) and gradients are written into given tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import bilinear, vjp, wide

MAX = 0  # pool_mode of RoIAlign; 1 is the average
LOWEST = -10000.0  # where mmcv starts to look for a maximum


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign, https://arxiv.org/abs/1703.06870: the average or maximum of points between the pixels.

    A bin has sampling_ratio points each way, with 0 as many as it has pixels. aligned shifts the RoIs by half a pixel,
    since pixels have their centres at whole numbers. argmax_y and argmax_x get the coordinates of maxima.
    """
    maps, rois = wide(input), wide(rois)
    if pool_mode != MAX:
        size, ratio = (aligned_height, aligned_width), sampling_ratio or -1
        output.copy_(torch.ops.torchvision.roi_align(maps, rois, spatial_scale, *size, ratio, aligned))
        return
    points = bin_points(rois, output.shape[2:], spatial_scale, sampling_ratio, aligned)
    for i, (image, y, x) in enumerate(points):
        values = bilinear(maps[image], y.flatten(), x.flatten()).unflatten(1, y.shape)
        best, index = F.pad(values, (1, 0), value=LOWEST).max(3)
        output[i] = best
        for argmax, coordinates in ((argmax_y, y), (argmax_x, x)):
            known = F.pad(coordinates, (1, 0), value=-1)
            argmax[i] = known.expand(*values.shape[:3], -1).gather(3, index[..., None])[..., 0]


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    grad = wide(grad_output)
    if pool_mode != MAX:
        size, ratio = (aligned_height, aligned_width, *grad_input.shape), sampling_ratio or -1
        backward = torch.ops.torchvision._roi_align_backward
        grad_input.copy_(backward(grad, wide(rois), spatial_scale, *size, ratio, aligned))
        return
    for image, grad_map in enumerate(grad_input):
        here = rois[:, 0] == image
        y, x, top = (wide(t[here]).transpose(0, 1).flatten(1) for t in (argmax_y, argmax_x, grad))
        # A value between pixels is linear in the map: its gradient is that of any map. -1 is no point.
        any_map = torch.zeros_like(grad_map, dtype=top.dtype)
        grad_map.copy_(vjp(partial(bilinear, y=y, x=x), [any_map], top * (y != -1))[0])


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool, https://arxiv.org/abs/1504.08083: the maximum of whole pixels; argmax (int32) their places in H x W.

    It is not torchvision's, which rounds a RoI to whole pixels before it is divided: mmcv rounds each bin.
    """
    argmax.fill_(-1)
    for start in range(0, len(rois), 32):  # the largest RoI decides how much memory they take
        part = slice(start, start + 32)
        _roi_pool(input, wide(rois[part]), output[part], argmax[part], spatial_scale)


def _roi_pool(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, spatial_scale: float) -> None:
    pooled_height, pooled_width = output.shape[2:]
    pooled = rois.new_tensor([pooled_height, pooled_width])
    start = rois[:, [2, 1]] * spatial_scale
    size = (rois[:, [4, 3]] + 1) * spatial_scale - start
    numbers = torch.arange(max(output.shape[2:]) + 1, device=rois.device)[:, None]
    edges = numbers * (size / pooled)[:, None] + start[:, None]  # of the bins: (R, bins + 1, 2)
    limits = edges.new_tensor(input.shape[2:])
    low = edges[:, :-1].floor().clamp(min=0).minimum(limits).long()
    high = edges[:, 1:].ceil().clamp(min=0).minimum(limits).long()
    wide_enough = (size > 0).all(1)
    height, width = input.shape[2:]
    pixels = input.permute(0, 2, 3, 1).flatten(0, 2)  # (N H W, C)
    before = rois[:, :1].long() * height * width  # pixels of the images before a RoI's, (R, 1)
    for row in range(pooled_height):
        rows = _pixels_of_bin(low[:, row, 0], high[:, row, 0])  # (R, h)
        for column in range(pooled_width):
            columns = _pixels_of_bin(low[:, column, 1], high[:, column, 1])  # (R, w)
            places = (rows[:, :, None] * width + columns[:, None]).flatten(1)  # (R, h w)
            best, index = pixels[before + places].max(1)  # (R, C)
            full = wide_enough & (low[:, row, 0] < high[:, row, 0]) & (low[:, column, 1] < high[:, column, 1])
            output[full, :, row, column] = best[full]
            argmax[full, :, row, column] = places.gather(1, index)[full].to(argmax.dtype)


def _pixels_of_bin(low: Tensor, high: Tensor) -> Tensor:
    """Whole numbers from low to below high, (R,), as rows of one length: the last number is repeated. (R, pixels)"""
    longest = int((high - low).max().clamp(min=1)) if len(low) else 1
    numbers = low[:, None] + torch.arange(longest, device=low.device)
    return numbers.minimum(high[:, None] - 1).clamp(min=0)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    for image, grad_map in enumerate(grad_input):
        here = rois[:, 0] == image
        index, grad = (t[here].transpose(0, 1).flatten(1) for t in (argmax, grad_output))
        grad_map.flatten(1).scatter_add_(1, index.clamp(min=0).long(), grad * (index >= 0))


def prroi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """PrRoI pooling, https://arxiv.org/abs/1807.11590, equation 4: the average of all points of a bin, an integral.

    An empty RoI gives 0.
    """
    for i, image in of_some_size(rois):
        output[i] = integral(rois[i, 1:], input[image], (pooled_height, pooled_width), spatial_scale)


def prroi_pool_backward(
    grad_output: Tensor, rois: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    for i, image in of_some_size(rois):
        pool = partial(integral, rois[i, 1:], size=(pooled_height, pooled_width), scale=spatial_scale)
        grad_input[image] += vjp(pool, [torch.zeros_like(grad_input[image])], grad_output[i])[0]


def prroi_pool_coor_backward(
    output: Tensor,
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    grad_rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The gradient of the RoIs' coordinates."""
    for i, image in of_some_size(rois):
        pool = partial(integral, maps=input[image], size=(pooled_height, pooled_width), scale=spatial_scale)
        grad_rois[i, 1:] = vjp(pool, [rois[i, 1:]], grad_output[i])[0]


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Deformable RoI pooling, https://arxiv.org/abs/1703.06211, section 2.2, with the points of RoIAlign.

    offset (R, 2, pooled height, pooled width) moves each bin by x and y, in gamma times the RoI's size. Empty: none.
    """
    shifts = bin_shifts(rois, offset, spatial_scale, gamma)
    points = bin_points(wide(rois), output.shape[2:], spatial_scale, sampling_ratio, True)
    for i, (image, y, x) in enumerate(points):
        output[i] = moved(wide(input[image]), shifts[i], y, x)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    shifts = bin_shifts(rois, offset, spatial_scale, gamma)
    unit = bin_shifts(rois, torch.ones_like(offset), spatial_scale, gamma)
    points = bin_points(wide(rois), grad_output.shape[2:], spatial_scale, sampling_ratio, True)
    for i, (image, y, x) in enumerate(points):
        pool = partial(moved, y=y, x=x)
        grad_map, grad_shift = vjp(pool, [wide(input[image]), shifts[i]], wide(grad_output[i]))
        grad_input[image] += grad_map
        if offset.numel():
            grad_offset[i] = grad_shift * unit[i]


def bin_points(
    rois: Tensor, pooled: Sequence[int], scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each RoI's image, and the coordinates y and x of its points, (pooled height, pooled width, points in a bin)."""
    half = 0.5 if aligned else 0
    start = rois[:, [2, 1]] * scale - half
    size = rois[:, [4, 3]] * scale - half - start
    if not aligned:
        size = size.clamp(min=1)
    bins = size / size.new_tensor(pooled)
    numbers = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil().clamp(min=0)
    images = rois[:, 0].long().tolist()
    for image, first, step, number in zip(images, start, bins, numbers.long().tolist(), strict=True):
        y, x = (
            first[axis]
            + torch.arange(pooled[axis], device=rois.device)[:, None] * step[axis]
            + (torch.arange(number[axis], device=rois.device) + 0.5) * step[axis] / number[axis]
            for axis in (0, 1)
        )
        shape = (*pooled, *number)
        yield image, y[:, None, :, None].expand(shape).flatten(2), x[None, :, None, :].expand(shape).flatten(2)


def of_some_size(rois: Tensor) -> list[tuple[int, int]]:
    """Numbers and images of the RoIs that are not empty."""
    numbers = (rois[:, 3:] > rois[:, 1:3]).all(1).nonzero()[:, 0]
    return list(zip(numbers.tolist(), rois[numbers, 0].long().tolist(), strict=True))


def integral(roi: Tensor, maps: Tensor, size: Sequence[int], scale: float) -> Tensor:
    """The averages (C, height, width) of the bins of a RoI (4,) of maps (C, H, W), interpolated bilinearly."""

    def shares(start: Tensor, end: Tensor, bins: int, pixels: int) -> Tensor:
        """What each pixel adds to the average of each bin, along one axis: (bins, pixels)."""
        edges = start + (end - start) * torch.arange(bins + 1, device=roi.device) / bins
        t = (edges[:, None] - torch.arange(pixels, device=roi.device)).clamp(-1, 1)
        return (t - t * t.abs() / 2).diff(dim=0) * bins / (end - start)  # the integral of 1 - |t|

    x1, y1, x2, y2 = roi * scale
    return shares(y1, y2, size[0], maps.shape[1]) @ maps @ shares(x1, x2, size[1], maps.shape[2]).T


def bin_shifts(rois: Tensor, offset: Tensor, scale: float, gamma: float) -> Tensor:
    """How far bins are moved, in pixels of the maps: (R, 2, pooled height, pooled width), x and y."""
    size = (wide(rois)[:, 3:] - wide(rois)[:, 1:3]) * scale
    return gamma * size[:, :, None, None] * (wide(offset) if offset.numel() else 0)


def moved(maps: Tensor, shift: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The averages (C, height, width) of points (height, width, points) in moved bins; 0 of no points."""
    y, x = y + shift[1, ..., None], x + shift[0, ..., None]
    return bilinear(maps, y.flatten(), x.flatten()).unflatten(1, y.shape).sum(3) / max(y.shape[2], 1)

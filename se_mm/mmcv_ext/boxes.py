"""Boxes (N, 4), float, as x1, y1, x2, y2: non-maximum suppression and overlaps.

A box is ``x2 - x1 + offset`` wide: offset 1 is the older convention, in which x2 and y2 are the last pixels inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import wide

NAIVE, LINEAR = 0, 1  # methods of softnms; 2 is gaussian


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that overlap no better one by more than the threshold, best score first."""
    boxes = wide(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # Two things to decide as mmcv does. Equal scores have the order of torch's unstable sort.
    order = scores.sort(descending=True)[1]
    ranks = torch.arange(boxes.shape[0], 0, -1, dtype=boxes.dtype, device=boxes.device)
    # And the threshold has float32's 24 bits: an IoU of exactly 0.3 is above the double 0.3. Rounded by Veltkamp's
    # splitting, which torch.compile traces.
    scaled = iou_threshold * (2**29 + 1)
    threshold = scaled - (scaled - iou_threshold)
    return order[torch.ops.torchvision.nms(boxes[order], ranks, threshold)]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS, https://arxiv.org/abs/1704.04503: scores of overlapping boxes are lowered.

    Returns the indices of the boxes left, in the order in which they were chosen, and writes them with their new
    scores into the first rows of dets (N, 5).
    """
    rows = torch.cat([boxes, scores[:, None], area(boxes, offset)[:, None]], 1)
    indices = torch.arange(len(boxes))
    done, end = 0, len(boxes)
    while done < end:
        best = done + int(rows[done:end, 4].argmax())
        for x in (rows, indices):
            x[[done, best]] = x[[best, done]]
        head, rest, rest_indices = rows[done], rows[done + 1 : end], indices[done + 1 : end]
        iou = overlap(head[:4], rest, head[5], rest[:, 5], offset)
        if method in (NAIVE, LINEAR):
            weight = torch.where(iou >= iou_threshold, 1 - iou if method == LINEAR else 0, 1)
        else:
            weight = torch.exp(-(iou * iou) / sigma)
        rest[:, 4] *= weight
        alive = ~(rest[:, 4] < min_score)
        left = int(alive.sum())
        if left < len(rest):
            # As in mmcv, those left at the end take the places that became free: it decides between equal scores.
            free, last = (~alive[:left]).nonzero()[:, 0], alive[left:].nonzero()[:, 0].flip(0) + left
            rest[free], rest_indices[free] = rest[last], rest_indices[last]
        done, end = done + 1, done + 1 + left
    dets[:end] = rows[:end, :5]
    return indices[:end]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices: a box that NMS keeps, and those that it removes for it. dets (N, 5) end with scores."""
    left = dets[:, 4].sort(descending=True)[1]
    areas = area(dets, 0)
    groups = []
    while len(left):
        head, rest = left[0], left[1:]
        same = overlap(dets[head], dets[rest], areas[head], areas[rest], 0) >= iou_threshold
        groups.append([int(head), *rest[same].tolist()])
        left = rest[~same]
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Overlaps of pairs (N,), or of all with all (N, M), divided by the union (mode 0) or the first box (mode 1)."""
    first = bboxes1 if aligned else bboxes1[:, None]
    area1, area2 = area(first, offset), area(bboxes2, offset)
    ious.copy_(overlap(first, bboxes2, area1, area2 if mode == 0 else None, offset))


def area(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] + offset) * (boxes[..., 3] - boxes[..., 1] + offset)


def overlap(boxes1: Tensor, boxes2: Tensor, area1: Tensor, area2: Tensor | None, offset: int) -> Tensor:
    """Intersection over union, or over area1 alone."""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:4], boxes2[..., 2:4])
    common = (high - low + offset).clamp(min=0).prod(-1)
    return common / (area1 if area2 is None else area1 + area2 - common)

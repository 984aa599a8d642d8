"""Classifiers and detectors of OpenMMLab as functions of one tensor of images, which torch.export can trace.

Detectors of OpenMMLab choose between ways by the number of boxes, which a graph cannot. The networks here compute what
``predict`` of those detectors computes, with operators that take any number of boxes. They hold no weights of their
own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

Found = tuple[Tensor, Tensor, Tensor]  # boxes, scores and labels


def traceable(model: nn.Module) -> nn.Module:
    """A detector as a function of a tensor; a classifier is one already.

    Args:
        model: of MMDetection or MMPreTrain, in evaluation mode.

    Returns:
        A network that shares the model's weights.

    Raises:
        ValueError: the detector predicts in another way than the detectors here.
    """
    if not is_detector(model):
        if not hasattr(model, 'head'):
            raise ValueError(f'{type(model).__name__} has neither a head for classes nor one for boxes')
        return model
    from mmdet.models import SingleStageDetector, TwoStageDetector

    kinds = {SingleStageDetector: (SingleStage, why_not_single_stage), TwoStageDetector: (TwoStage, why_not_two_stage)}
    for kind, (network, why_not) in kinds.items():
        if isinstance(model, kind):
            if type(model).predict is not kind.predict:
                raise ValueError(f'{type(model).__name__} predicts in its own way')
            try:
                why, found = why_not(model), network(model)
            except (AttributeError, TypeError) as error:  # what all these detectors have is missing
                raise ValueError(f'{type(model).__name__}: {error}') from error
            if why:
                raise ValueError(why)
            return found
    raise ValueError(f'{type(model).__name__} is neither a single-stage nor a two-stage detector')


def is_detector(model: nn.Module) -> bool:
    """Whether a model has a head for boxes."""
    return hasattr(model, 'bbox_head') or hasattr(model, 'roi_head')


def why_other_methods(module: nn.Module, kind: type, *names: str) -> str | None:
    """What a module computes in another way than the class it is derived from; None if nothing."""
    if not isinstance(module, kind):
        return f'{type(module).__name__} is no {kind.__name__}'
    other = [name for name in names if getattr(type(module), name) is not getattr(kind, name)]
    return f'{type(module).__name__} has its own {other[0]}' if other else None


def why_other_nms(cfg: ConfigDict) -> str | None:
    """Why the suppression that a test_cfg asks for is none of this module."""
    kind = cfg.nms.get('type', 'nms')
    if kind != 'nms':
        return f'test_cfg has nms of type {kind}'
    others = set(cfg.nms) - {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if cfg.nms.get('class_agnostic') and 'split_thr' in cfg.nms:
        others.add('split_thr')
    return f'test_cfg has nms with {", ".join(sorted(others))}' if others else None


def why_not_single_stage(model: nn.Module) -> str | None:
    """Why :class:`SingleStage` cannot stand for a detector."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    head = model.bbox_head
    steps = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    if why := why_other_methods(head, BaseDenseHead, *steps):
        return why
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        return f'{type(head.loss_cls).__name__} has its own activation'
    return why_other_nms(head.test_cfg)


def why_not_two_stage(model: nn.Module) -> str | None:
    """Why :class:`TwoStage` cannot stand for a detector."""
    from mmdet.models import BBoxHead, RPNHead, SingleRoIExtractor, StandardRoIHead

    roi_head = model.roi_head
    extractor, head = roi_head.bbox_roi_extractor, roi_head.bbox_head
    parts = (
        (model.rpn_head, RPNHead, '_predict_by_feat_single', '_bbox_post_process'),
        (roi_head, StandardRoIHead, 'predict', 'predict_bbox', '_bbox_forward'),
        (extractor, SingleRoIExtractor, 'forward', 'map_roi_levels'),
        (head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single'),
    )
    for module, kind, *names in parts:
        if why := why_other_methods(module, kind, *names):
            return why
    if roi_head.with_mask:
        return f'{type(roi_head).__name__} has masks'
    if head.custom_cls_channels or not head.with_reg:
        return f'{type(head).__name__} has its own activation or no boxes'
    layer = extractor.roi_layers[0]
    if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg':
        return f'{type(layer).__name__} is no RoIAlign that averages'
    return why_other_nms(model.rpn_head.test_cfg) or why_other_nms(roi_head.test_cfg)


class Detections(nn.Module):
    """Base of detectors: images to boxes, scores and labels.

    Args:
        detector: of MMDetection, in evaluation mode.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.divisor = detector.data_preprocessor.pad_size_divisor
        self.pad_value = detector.data_preprocessor.pad_value

    def forward(self, images: Tensor) -> Found:
        """Find objects in one image.

        Args:
            images: (1, 3, H, W), normalised.

        Returns:
            boxes (K, 4) as x1, y1, x2, y2 in pixels of the input; scores (K,), descending; labels (K,), int64.
        """
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor), value=self.pad_value)
        return self.predict(self.detector.extract_feat(padded), (height, width))

    def predict(self, maps: Sequence[Tensor], shape: tuple[int, int]) -> Found:
        """Boxes, scores and labels from the neck's maps; shape is H, W of the image, without padding."""
        raise NotImplementedError


class SingleStage(Detections):
    """A detector whose head predicts by the rules of MMDetection's BaseDenseHead, as RetinaNet, FCOS and ATSS."""

    def predict(self, maps: Sequence[Tensor], shape: tuple[int, int]) -> Found:
        head = self.detector.bbox_head
        cfg = head.test_cfg
        outputs = head(tuple(maps))
        factors = outputs[2] if len(outputs) > 2 else [None] * len(outputs[0])
        found = []
        for classes, deltas, factor, priors in zip(*outputs[:2], factors, grid_priors(head, outputs[0])):
            scores = class_scores(head, classes)
            columns = dict(deltas=rows(deltas, 4), priors=priors)
            if factor is not None:
                columns['factors'] = rows(factor, 1).sigmoid()
            best, index = best_of(scores.flatten(), cfg.get('nms_pre', -1))
            best = torch.where(best > cfg.get('score_thr', 0), best, -1.0)
            place = index // scores.shape[1]
            found.append((best, index % scores.shape[1], *(values[place] for values in columns.values())))
        scores, labels, deltas, priors, *factors = map(torch.cat, zip(*found))
        boxes = decode(head.bbox_coder, priors, deltas, shape)
        if factors:
            scores = torch.where(scores < 0, scores, scores * factors[0][:, 0])
        scores = torch.where(large_enough(boxes, cfg), scores, -1.0)
        return suppress(boxes, scores, labels, cfg.nms, cfg.max_per_img)


class TwoStage(Detections):
    """Faster R-CNN: RPNHead, StandardRoIHead, with a shared head or without, and a head for boxes without masks."""

    def predict(self, maps: Sequence[Tensor], shape: tuple[int, int]) -> Found:
        roi_head = self.detector.roi_head
        head, cfg = roi_head.bbox_head, roi_head.test_cfg
        proposals = self.proposals(maps, shape)
        nowhere = proposals.new_zeros(1, 4)
        proposals = torch.cat([proposals, nowhere])  # never without a row; its scores are taken away below
        features = self.roi_features(roi_head.bbox_roi_extractor, maps, proposals)
        if roi_head.with_shared_head:
            features = roi_head.shared_head(features)
        logits, deltas = head(features)
        scores = logits.softmax(-1)[:-1, :-1]
        repeated = proposals.repeat_interleave(deltas.shape[1] // 4, 0)
        boxes = decode(head.bbox_coder, repeated, deltas.reshape(-1, 4), shape)
        boxes = boxes.unflatten(0, (-1, deltas.shape[1] // 4))[:-1].expand(-1, scores.shape[1], -1)
        labels = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        scores = torch.where(scores > cfg.score_thr, scores, -1.0)
        return suppress(boxes.reshape(-1, 4), scores.flatten(), labels.flatten(), cfg.nms, cfg.max_per_img)

    def proposals(self, maps: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
        """Boxes (P, 4) that may hold an object."""
        head = self.detector.rpn_head
        cfg, found = head.test_cfg, []
        outputs = head(tuple(maps))
        for level, (classes, deltas, priors) in enumerate(zip(*outputs, grid_priors(head, outputs[0]))):
            scores, index = best_of(class_scores(head, classes).flatten(), cfg.get('nms_pre', -1))
            found.append((scores, torch.full_like(index, level), rows(deltas, 4)[index], priors[index]))
        scores, levels, deltas, priors = map(torch.cat, zip(*found))
        boxes = decode(head.bbox_coder, priors, deltas, shape)
        scores = torch.where(large_enough(boxes, cfg), scores, -1.0)
        return suppress(boxes, scores, levels, cfg.nms, cfg.max_per_img)[0]

    def roi_features(self, extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(P, C, h, w) of boxes (P, 4), each from the map that fits its size."""
        layers, boxes = extractor.roi_layers, F.pad(boxes, (1, 0))  # (P, 5), of image 0
        if len(layers) == 1:
            return align(layers[0], maps[0], boxes)
        levels = extractor.map_roi_levels(boxes, len(layers))
        features, nowhere = boxes.new_zeros(boxes.shape[0], extractor.out_channels, *layers[0].output_size), boxes[-1:]
        for level, layer in enumerate(layers):
            (index,) = (levels == level).nonzero(as_tuple=True)
            # some runtimes fail without a box
            part = align(layer, maps[level], torch.cat([boxes[index], nowhere]))[:-1]
            features = features.index_put((index,), part)
        return features


def rows(maps: Tensor, width: int) -> Tensor:
    """(1, A width, H, W) to (H W A, width), as MMDetection orders priors."""
    return maps[0].permute(1, 2, 0).reshape(-1, width)


def grid_priors(head: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Anchors or points of the maps, (H W A, 4) or (H W, 2) each."""
    return head.prior_generator.grid_priors([x.shape[-2:] for x in maps], dtype=maps[0].dtype, device=maps[0].device)


def decode(coder: object, priors: Tensor, deltas: Tensor, shape: tuple[int, int]) -> Tensor:
    """Boxes (K, 4) inside an image of H, W pixels."""
    boxes = coder.decode(priors, deltas)
    if not getattr(coder, 'clip_border', True):
        return boxes
    height, width = shape
    return torch.stack([boxes[:, i].clamp(0, width if i % 2 == 0 else height) for i in range(4)], 1)


def class_scores(head: nn.Module, maps: Tensor) -> Tensor:
    """(H W A, classes) between 0 and 1."""
    logits = rows(maps, head.cls_out_channels)
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]


def best_of(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The best scores, descending, and their indices; -1 fills up where there are fewer. All if number is below 1."""
    if number < 1:
        return scores, torch.arange(scores.shape[0], device=scores.device)
    best, index = torch.cat([scores, scores.new_full((number,), -1.0)]).topk(number)
    return best, torch.where(best < 0, 0, index)


def large_enough(boxes: Tensor, cfg: ConfigDict) -> Tensor:
    """Which boxes are wider and higher than ``min_bbox_size``."""
    size = cfg.get('min_bbox_size', -1)
    return ((boxes[:, 2:] - boxes[:, :2]) > (size if size >= 0 else -torch.inf)).all(1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, nms: ConfigDict, number: int) -> Found:
    """Boxes with scores of 0 or more that no better box of the same group overlaps, at most a number of them.

    Returns:
        boxes (K, 4), scores (K,), descending, and groups (K,).
    """
    (index,) = (scores >= 0).nonzero(as_tuple=True)
    boxes, scores, groups = boxes[index], scores[index], groups[index]
    if nms.get('class_agnostic'):
        apart = boxes
    else:
        largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
        apart = boxes + (groups.to(boxes) * (largest + 1))[:, None]
    keep = torchvision.ops.nms(apart, scores, nms.iou_threshold)
    keep = keep[:number] if number > 0 else keep
    return boxes[keep], scores[keep], groups[keep]


def align(layer: nn.Module, maps: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign with the settings of MMCV's layer."""
    return torchvision.ops.roi_align(
        maps, boxes, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
    )

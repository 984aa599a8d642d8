"""COCO average precision of a file of predictions, as pycocotools reports it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy, deepcopy

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

STATS = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L', 'AR1', 'AR10', 'AR100', 'AR_S', 'AR_M', 'AR_L')


def _mean_precision(precision: np.ndarray) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None


def evaluate_images(
    truth: COCO,
    predictions: list[dict],
    iou_type: str = 'bbox',
    category_ids: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    all_sizes: bool = True,
) -> COCOeval:
    """Predictions in COCO result format put beside the annotations, image by image; nothing is summed up yet.

    Args:
        truth: annotations.
        predictions: in COCO result format.
        iou_type: 'bbox' or 'segm'.
        category_ids: categories to evaluate, None for all.
        image_ids: images to evaluate, None for all.
        all_sizes: also small, medium and large objects alone, and fewer than 100 boxes an image.
    """
    if iou_type == 'segm':
        # With a box in the prediction pycocotools takes the box's area for the object's size.
        predictions = [{k: v for k, v in p.items() if k != 'bbox'} for p in predictions]
    if predictions:
        detections = truth.loadRes(predictions)
    else:
        detections = COCO()
        detections.dataset = dict(truth.dataset, annotations=[])
        detections.createIndex()
    evaluation = COCOeval(truth, detections, iou_type)
    if category_ids is not None:
        evaluation.params.catIds = sorted(category_ids)
    if image_ids is not None:
        evaluation.params.imgIds = sorted(image_ids)
    if not all_sizes:
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ['all']
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
    evaluation.evaluate()
    return evaluation


def average_precision(evaluation: COCOeval, image_ids: Sequence[int]) -> float | None:
    """AP, a fraction, over some of the images of :func:`evaluate_images`; None if they have no objects."""
    params = deepcopy(evaluation.params)
    everything, params.imgIds = list(params.imgIds), sorted(image_ids)
    columns = np.searchsorted(everything, params.imgIds)
    found = np.empty(len(evaluation.evalImgs), dtype=object)
    found[:] = evaluation.evalImgs
    part = copy(evaluation)
    part.params = part._paramsEval = params
    part.evalImgs = found.reshape(-1, len(everything))[:, columns].ravel().tolist()  # categories and sizes, images
    part.accumulate()
    return _mean_precision(part.eval['precision'][:, :, :, 0, -1])


def coco_stats(
    ann_file: str,
    result_file: str,
    iou_type: str = 'bbox',
    category_ids: Sequence[int] | None = None,
    classwise: bool = False,
) -> dict[str, float | None | dict[str, float | None]]:
    """The twelve numbers of ``COCOeval.summarize`` for predictions in COCO result format.

    Args:
        ann_file: annotations in COCO format.
        result_file: JSON list of predictions in COCO result format.
        iou_type: 'bbox' or 'segm'.
        category_ids: categories to evaluate, None for all.
        classwise: also AP of each category, under ``per_class``.

    Returns:
        Fractions from 0 to 1 by name; None where there is nothing to find, e.g. no small objects.
    """
    truth = COCO(ann_file)
    with open(result_file) as file:
        predictions = json.load(file)
    evaluation = evaluate_images(truth, predictions, iou_type, category_ids)
    evaluation.accumulate()
    evaluation.summarize()
    stats = {name: None if value < 0 else float(value) for name, value in zip(STATS, evaluation.stats)}
    if classwise:
        precision = evaluation.eval['precision']  # IoU, recall, category, area, detections
        stats['per_class'] = {
            truth.cats[category]['name']: _mean_precision(precision[:, :, i, 0, -1])
            for i, category in enumerate(evaluation.params.catIds)
        }
    return stats

"""Checks of the boxes in a COCO annotation file."""

from __future__ import annotations

import logging
from collections import Counter

from mmengine.logging import print_log

from se_mm.utils import InputError

from .text import shown

LARGEST = 1e9  # pixels; larger numbers are as good as infinite
SHARE, FEW = 0.2, 10  # boxes that leave their image: share that is suspicious, number from which a share tells much


def check_boxes(path: str, annotations: list, images: dict, categories: dict) -> list[dict]:
    """Check the boxes of an annotation file, and warn of useless ones.

    Args:
        path: of the file, for messages.
        annotations: its annotations, with valid ``image_id``.
        images: its images by id, with valid sizes.
        categories: its categories by id.

    Returns:
        The annotations that training can use: neither crowds nor ignored, with a box of at least one pixel that is at
        least partly inside its image.

    Raises:
        InputError: an annotation is of no listed image or category, has no box, an infinite box, or an area that is no
            number; most likely all boxes are corners.
    """
    skipped, usable, boxes, leaving, corners = Counter(), [], 0, 0, 0
    for annotation in annotations:
        image = images.get(annotation['image_id'])
        if image is None:
            raise _error(
                path, annotation, f'is of image {shown(annotation["image_id"])}, which is not in its list of images'
            )
        if annotation.get('ignore'):
            continue
        _check_fields(path, annotation, categories)
        x, y, w, h = annotation['bbox']
        width, height = image['width'], image['height']
        if not all(abs(v) <= LARGEST for v in annotation['bbox']):  # as of NaN
            skipped['without finite numbers'] += 1
        elif not abs(annotation['area']) < float('inf'):
            skipped['without finite area'] += 1
        elif w < 1 or h < 1 or annotation['area'] <= 0:
            skipped['without area'] += 1
        else:
            boxes += 1
            # rounding moves sides by a pixel or two
            leaving += x < -2 or y < -2 or x + w > width + 2 or y + h > height + 2
            corners += -2 <= x < w <= width + 2 and -2 <= y < h <= height + 2
            if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
                skipped['outside their image'] += 1
            elif not annotation.get('iscrowd'):
                usable.append(annotation)
    if skipped:
        counts = ' and '.join(f'{n} {what}' for what, n in skipped.items())
        _warn(f'{path}: of {len(annotations)} boxes {counts} are useless or skipped')
    if leaving > SHARE * boxes:
        if corners == boxes >= FEW:
            raise InputError(
                f'annotation file {path}: {leaving} of {boxes} boxes leave their image, and all boxes fit as corners '
                '[x1, y1, x2, y2]: write boxes as [x, y, width, height]'
            )
        _warn(f'{path}: {leaving} of {boxes} boxes leave their image: are all boxes [x, y, width, height], in pixels?')
    return usable


def _check_fields(path: str, annotation: dict, categories: dict) -> None:
    box, area, category = (annotation.get(key) for key in ('bbox', 'area', 'category_id'))
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise _error(path, annotation, f'has bbox {shown(box)}, expected four numbers [x, y, width, height]')
    if any(v > LARGEST for v in box[2:]):  # mmdet would train with it
        raise _error(path, annotation, f'has bbox {shown(box)}, expected a finite width and height')
    if type(area) not in (int, float):
        raise _error(path, annotation, f'has area {shown(area)}, expected a number')
    if not isinstance(category, int | float | str) or category not in categories:
        raise _error(
            path, annotation, f'has category_id {shown(category)}, which is none of its {len(categories)} categories'
        )


def _error(path: str, annotation: dict, problem: str) -> InputError:
    return InputError(f'annotation file {path}: annotation {annotation["id"]} {problem}')


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)

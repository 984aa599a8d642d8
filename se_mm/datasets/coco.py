"""Checks of COCO annotation files and their images, for any data set that reads them as mmdet's CocoDataset does."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter

from mmengine.logging import print_log

from se_mm.utils import InputError


def reads_coco_files(cls: type) -> bool:
    """Whether a data set reads its annotation file the way mmdet's CocoDataset does."""
    coco = next((base for base in cls.__mro__ if base.__name__ == 'CocoDataset'), None)
    methods = ('load_data_list', 'parse_data_info')
    return coco is not None and all(getattr(cls, name) is getattr(coco, name) for name in methods)


def check_coco(dataset: dict, cls: type) -> tuple[int, str]:
    """Check a COCO annotation file against its images and against the classes of the config.

    Args:
        dataset: config of the data set.
        cls: its class, :func:`reads_coco_files` of which is true.

    Returns:
        The number of classes, 0 if neither class nor config names any, and the path of the annotation file.

    Raises:
        InputError: a file is missing, damaged or not in COCO format; it has no category for a class of the config.
    """
    root, name = dataset.get('data_root') or '', dataset.get('ann_file', '')
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        raise InputError(f'annotation file {path} is missing: put it there, or set ann_file')
    try:
        with open(path) as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f'annotation file {path} is truncated or not JSON ({error}): copy it again') from error
    wanted = ['images', 'categories']
    if not dataset.get('test_mode') and (dataset.get('filter_cfg') or {}).get('filter_empty_gt'):
        wanted.append('annotations')
    absent = [k for k in wanted if not isinstance(content, dict) or not isinstance(content.get(k), list)]
    if absent:
        raise InputError(f'annotation file {path} is not in COCO format: it has no list {" and ".join(absent)}')
    images = _by_id(path, content, 'images', ('id', 'file_name', 'width', 'height'))
    categories = _by_id(path, content, 'categories', ('id', 'name'))
    annotations = _by_id(path, content, 'annotations', ('id', 'image_id'))
    _check_annotations(path, annotations, images, categories)
    names = [category['name'] for category in categories.values()]
    classes = cls._load_metainfo(dataset.get('metainfo')).get('classes') or []
    lacking = [name for name in classes if name not in names]
    if lacking:
        raise InputError(
            f'annotation file {path} has no category {lacking[0]!r}, which is one of the {len(classes)} classes of the '
            f'config (the file has {", ".join(names[:8])}): set metainfo=dict(classes=...) of '
            'the data set and num_classes of the heads'
        )
    _check_image_files(os.path.join(root, (dataset.get('data_prefix') or {}).get('img', '')), images, path)
    return len(classes), path


def _by_id(path: str, content: dict, kind: str, keys: tuple[str, ...]) -> dict:
    entries = content.get(kind, [])
    for i, entry in enumerate(entries):
        absent = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if absent:
            raise InputError(f'annotation file {path} is not in COCO format: {kind}[{i}] has no {absent[0]!r}')
    return {entry['id']: entry for entry in entries}


def _check_annotations(path: str, annotations: dict, images: dict, categories: dict) -> None:
    skipped = Counter()
    for number, annotation in annotations.items():
        where = f'annotation file {path}: annotation {number}'
        if annotation['image_id'] not in images:
            raise InputError(f'{where} is of image {annotation["image_id"]}, which is not in its list of images')
        if annotation.get('ignore'):
            continue
        box = annotation.get('bbox')
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise InputError(f'{where} has bbox {box}, expected four numbers [x, y, width, height]')
        if not isinstance(annotation.get('area'), int | float):
            raise InputError(f'{where} has area {annotation.get("area")}, expected a number')
        if annotation.get('category_id') not in categories:
            raise InputError(
                f'{where} has category_id {annotation.get("category_id")}, '
                f'which is none of its {len(categories)} categories'
            )
        x, y, w, h = box
        image = images[annotation['image_id']]
        if w < 1 or h < 1 or annotation['area'] <= 0:
            skipped['without area'] += 1
        elif min(x + w, image['width']) <= max(x, 0) or min(y + h, image['height']) <= max(y, 0):
            skipped['outside their image'] += 1
    if skipped:
        counts = ' and '.join(f'{n} {what}' for what, n in skipped.items())
        print_log(f'{path}: of {len(annotations)} boxes {counts} are skipped', logger='current', level=logging.WARNING)


def _check_image_files(folder: str, images: dict, path: str) -> None:
    if not os.path.isdir(folder):
        raise InputError(f'image folder {folder} does not exist: put the images there, or set data_prefix')
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    bad = []
    for image in images.values():
        name = image['file_name']
        size = sizes.get(name)
        if size is None and os.path.dirname(name) and os.path.isfile(os.path.join(folder, name)):
            size = os.path.getsize(os.path.join(folder, name))
        if not size:
            bad.append((os.path.join(folder, name), 'missing' if size is None else 'empty'))
    if bad:
        raise InputError(
            f'{len(bad)} of {len(images)} images listed in {path} are missing or empty, '
            f'the first is {bad[0][0]} ({bad[0][1]})'
        )

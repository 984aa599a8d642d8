"""Checks of COCO annotation files and their images, for any data set that reads them as mmdet's CocoDataset does."""

from __future__ import annotations

import logging
import os
from collections import Counter

from mmengine.logging import print_log

from se_mm.utils import InputError

from .coco_boxes import check_boxes
from .images import MAX_PIXELS, MAX_SIDE, check_images
from .text import is_path, read_json, shown


def reads_coco_files(cls: type) -> bool:
    """Whether a data set reads its annotation file the way mmdet's CocoDataset does."""
    coco = next((base for base in cls.__mro__ if base.__name__ == 'CocoDataset'), None)
    methods = ('load_data_list', 'parse_data_info')
    return coco is not None and all(getattr(cls, name) is getattr(coco, name) for name in methods)


def check_coco(dataset: dict, cls: type, alone: bool = False, skippable: int | None = None) -> tuple[int, str]:
    """Check a COCO annotation file against its images and against the classes of the config.

    Args:
        dataset: config of the data set.
        cls: its class, :func:`reads_coco_files` of which is true.
        alone: no other data set is trained on, so that this one needs a usable box.
        skippable: how many broken images training may replace, see :func:`check_images`.

    Returns:
        The number of classes, 0 if neither class nor config names any, and the path of the annotation file.

    Raises:
        InputError: a file is missing, damaged or not in COCO format; it has no category for a class of the config;
            it contradicts itself; training has no usable box.
    """
    root, name = dataset.get('data_root') or '', dataset.get('ann_file', '')
    path = os.path.join(root, name)
    if not os.path.exists(path):
        raise InputError(f'annotation file {path} is missing: put it there, or set ann_file')
    training, rules = not dataset.get('test_mode'), dataset.get('filter_cfg') or {}
    content = read_json(path)
    wanted = ['images', 'categories']
    if training and rules.get('filter_empty_gt') or isinstance(content, dict) and 'annotations' in content:
        wanted.append('annotations')
    absent = [k for k in wanted if not isinstance(content, dict) or not isinstance(content.get(k), list)]
    if absent:
        raise InputError(f'annotation file {path} is not in COCO format: it has no list {" and ".join(absent)}')
    for kind in FIELDS:
        _check_types(path, content, kind)
    images, categories = _by_id(path, content, 'images'), _by_id(path, content, 'categories')
    if not images:
        raise InputError(f'annotation file {path} lists no image: set ann_file to a file that does')
    annotations = content.get('annotations', [])
    _check_annotation_ids(path, annotations, unique=getattr(cls, 'ANN_ID_UNIQUE', True))
    classes = cls._load_metainfo(dataset.get('metainfo')).get('classes') or []
    _check_classes(path, [category['name'] for category in categories.values()], classes)
    _check_file_names(path, images)
    if training and rules.get('min_size'):  # smaller images are left out of training
        large = {i for i, image in images.items() if min(image['width'], image['height']) >= rules['min_size']}
    else:
        large = set(images)
    used = {i for i, category in categories.items() if not classes or category['name'] in classes}
    usable = check_boxes(path, annotations, images, categories)
    if not any(a['image_id'] in large and a['category_id'] in used for a in usable):
        _report_no_box(path, annotations, training, needed=alone or bool(rules.get('filter_empty_gt')))
    _check_image_files(os.path.join(root, (dataset.get('data_prefix') or {}).get('img', '')), images, path, skippable)
    return len(classes), path


def _is_integer(value: object) -> bool:
    return type(value) is int and abs(value) < 1 << 63 or type(value) is float and value.is_integer()


def _is_id(value: object) -> bool:
    return isinstance(value, str) or _is_integer(value)


def _is_side(value: object) -> bool:
    return type(value) in (int, float) and 1 <= value <= MAX_SIDE  # false of NaN


ID, NAME = (_is_id, 'a whole number or text'), (is_path, 'text of at most 1024 characters')
SIDE = (_is_side, f'a number of pixels from 1 to {MAX_SIDE}')
FIELDS = dict(
    images=dict(id=ID, file_name=NAME, width=SIDE, height=SIDE),
    categories=dict(id=ID, name=NAME),
    annotations=dict(id=(_is_integer, 'a whole number'), image_id=ID),
)


def _check_types(path: str, content: dict, kind: str) -> None:
    for i, entry in enumerate(content.get(kind, [])):
        where = f'{kind}[{i}]'
        for key, (fits, expected) in FIELDS[kind].items():
            if not isinstance(entry, dict) or key not in entry:
                raise InputError(f'annotation file {path} is not in COCO format: {where} has no {key!r}')
            if not fits(entry[key]):
                raise InputError(f'annotation file {path}: {where} has {key} {shown(entry[key])}, expected {expected}')
        if kind == 'images' and entry['width'] * entry['height'] > MAX_PIXELS:
            raise InputError(
                f'annotation file {path}: {where} has {entry["width"]}x{entry["height"]} pixels, expected at most '
                f'{MAX_PIXELS}, more than which OpenCV does not read: correct the size, or cut the image'
            )


def _by_id(path: str, content: dict, kind: str) -> dict:
    entries = {entry['id']: entry for entry in content[kind]}
    if len(entries) < len(content[kind]):
        number, count = Counter(entry['id'] for entry in content[kind]).most_common(1)[0]
        raise InputError(
            f'annotation file {path}: {len(content[kind]) - len(entries)} of {len(content[kind])} {kind} have the id '
            f'of another, the first is id {shown(number)}, {count} times: give each its own id'
        )
    return entries


def _check_annotation_ids(path: str, annotations: list, unique: bool) -> None:
    counts = Counter(annotation['id'] for annotation in annotations)
    if len(counts) < len(annotations):
        number, count = counts.most_common(1)[0]
        message = (
            f'annotation file {path}: {len(annotations) - len(counts)} of {len(annotations)} annotations have the id '
            f'of another, the first is id {number}, {count} times: give each its own id'
        )
        if unique:
            raise InputError(message)
        _warn(message)
    if 0 in counts:
        _warn(f'{path}: pycocotools counts the object with annotation id 0 as never found: count ids from 1')


def _check_classes(path: str, names: list[str], classes: list[str] | tuple[str, ...]) -> None:
    lacking = [name for name in classes if name not in names]
    if lacking:
        raise InputError(
            f'annotation file {path} has no category {lacking[0]!r}, which is one of the {len(classes)} classes of the '
            f'config (the file has {", ".join(names[:8])}): set metainfo=dict(classes=...) of '
            'the data set and num_classes of the heads'
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if any(name in classes for name in twice):
        raise InputError(
            f'annotation file {path} has {len(twice)} names of several categories, the first is {twice[0]!r}: mmdet '
            'would number the classes wrongly, give each category its own name or unite them under one id'
        )
    if twice:
        _warn(f'{path} has {len(twice)} names of several categories, the first is {twice[0]!r}')


def _check_file_names(path: str, images: dict) -> None:
    names = Counter(os.path.normpath(image['file_name']) for image in images.values())
    outside = [name for name in names if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir]
    if outside:
        _warn(f'{path}: {len(outside)} of {len(images)} images are outside the image folder, the first is {outside[0]}')
    if len(names) < len(images):
        name, count = names.most_common(1)[0]
        _warn(f'{path}: {len(images) - len(names)} of {len(images)} images are repeated, {name} {count} times')


def _report_no_box(path: str, annotations: list, training: bool, needed: bool) -> None:
    crowds, ignored = (sum(bool(a.get(key)) for a in annotations) for key in ('iscrowd', 'ignore'))
    message = (
        f'annotation file {path} has no usable box: of {len(annotations)} annotations {crowds} are crowds, {ignored} '
        'are ignored, the rest are too small, not finite, outside their image, of images that filter_cfg leaves out, '
        'or not of the classes'
    )
    if training and (needed or annotations):
        raise InputError(f'{message}: nothing can be learned, correct the boxes or set ann_file')
    if annotations:
        _warn(f'{message}: average precision will be -1')


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _check_image_files(folder: str, images: dict, path: str, skippable: int | None) -> None:
    if not os.path.isdir(folder):
        raise InputError(f'image folder {folder} does not exist: put the images there, or set data_prefix')
    listed = {os.path.join(folder, image['file_name']): image for image in images.values()}
    differ = []
    for name, size in check_images(list(listed), path, skippable).items():
        said = listed[name]['width'], listed[name]['height']
        if sorted(size) != sorted(said):  # cameras note that an image is to be turned
            differ.append(f'{name} ({size[0]}x{size[1]}, not {said[0]}x{said[1]})')
    if differ:
        _warn(f'{path}: {len(differ)} of {len(images)} images have another size than it says, the first is {differ[0]}')

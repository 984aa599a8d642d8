"""Validation images with what is in them and what networks found: boxes of detectors, answers of classifiers."""

from __future__ import annotations

import base64
import json
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from se_mm.utils import InputError
from se_mm.utils.config import leaf_datasets, use_scope

from .runs import Run

SCORE = 0.3  # boxes below are not shown
LONGEST_SIDE = 480  # pixels of a picture
CATEGORY_COLOURS = ('#c2185b', '#1565c0', '#2e7d32', '#ef6c00', '#6a1b9a', '#00838f', '#5d4037', '#37474f')


class Photo(NamedTuple):
    """An image as a data URI, with its own width and height in pixels and its name."""

    uri: str
    width: int
    height: int
    name: str


class Box(NamedTuple):
    """A box; its place is in percent of the image. The score is None for ground truth."""

    left: float
    top: float
    width: float
    height: float
    category: str
    colour: str
    score: float | None


class Detections(NamedTuple):
    """An image with the boxes of the ground truth, which has no network, and of each network."""

    photo: Photo
    boxes: list[tuple[str | None, list[Box]]]


class Answers(NamedTuple):
    """An image with its true category and, for each network, its best categories with their scores."""

    photo: Photo
    truth: str
    answers: list[tuple[str, list[tuple[str, float]]]]


def detections(runs: dict[str, Run], count: int = 6) -> list[Detections]:
    """Boxes on images at equal distances through the validation data.

    Args:
        runs: of detectors that were evaluated on the same data, by name.
        count: number of images.

    Raises:
        InputError: boxes or images are missing.
    """
    first = next(iter(runs.values()))
    predictions = {name: _read(run, 'predictions.bbox.json') for name, run in runs.items()}
    dataset = _validation_data(first)
    labels = {category: label for label, category in enumerate(getattr(dataset, 'cat_ids', ()))}
    names = dataset.metainfo['classes']
    colours: dict[int, str] = {}

    def box(label: int, x: float, y: float, w: float, h: float, score: float | None) -> Box:
        colour = colours.setdefault(label, CATEGORY_COLOURS[len(colours) % len(CATEGORY_COLOURS)])
        return Box(100 * x / width, 100 * y / height, 100 * w / width, 100 * h / height, names[label], colour, score)

    examples = []
    for index in _spaced(len(dataset), count):
        info = dataset.get_data_info(index)
        photo = _photo(info)
        width, height = photo.width, photo.height
        truth = [
            box(item['bbox_label'], x, y, x2 - x, y2 - y, None)
            for item in info['instances']
            if not item.get('ignore_flag')
            for x, y, x2, y2 in [item['bbox']]
        ]
        found = [(None, truth)]
        for name, boxes in predictions.items():
            shown = [b for b in boxes if b['image_id'] == info['img_id'] and b['score'] >= SCORE]
            shown.sort(key=lambda b: b['score'])  # the best on top
            found.append(
                (name, [box(labels.get(b['category_id'], b['category_id']), *b['bbox'], b['score']) for b in shown])
            )
        examples.append(Detections(photo, found))
    return examples


def answers(runs: dict[str, Run], count: int = 6) -> tuple[list[Answers], list[Answers], int]:
    """Answers to images at equal distances through the validation data, and to images that divide the networks.

    Args:
        runs: of classifiers that were evaluated on the same data, by name.
        count: number of images of each kind.

    Returns:
        the former, the latter, and the number of all images on which the networks' first answers differ.

    Raises:
        InputError: answers or images are missing.
    """
    first = next(iter(runs.values()))
    found = {name: {a['index']: a for a in _read(run, 'predictions.label.json')} for name, run in runs.items()}
    dataset = _validation_data(first)
    names = dataset.metainfo.get('classes')

    def name_of(label: int) -> str:
        return names[label] if names else str(label)

    def example(index: int) -> Answers:
        best = [
            (name, [(name_of(label), score) for label, score in zip(of[index]['answers'], of[index]['scores'])])
            for name, of in found.items()
        ]
        return Answers(_photo(dataset.get_data_info(index)), name_of(next(iter(found.values()))[index]['truth']), best)

    common = sorted(set.intersection(*(set(of) for of in found.values())))
    divided = [i for i in common if len({of[i]['answers'][0] for of in found.values()}) > 1]
    spaced = [example(common[i]) for i in _spaced(len(common), count)]
    return spaced, [example(divided[i]) for i in _spaced(len(divided), count)], len(divided)


def validation_data(run: Run) -> dict:
    """What the config says of the data of the evaluation, but for the transforms."""
    dataset = (run.cfg.get('test_dataloader') or {}).get('dataset') or {}
    return {key: value for key, value in dataset.items() if key != 'pipeline'}


def _validation_data(run: Run) -> BaseDataset:
    use_scope(run.cfg)
    dataset = run.cfg.test_dataloader.dataset
    for part in leaf_datasets(dataset):
        root = part.get('data_root') or ''
        if root and '://' not in root and not Path(root).is_dir():  # some data sets would download now
            raise InputError(f'there is no {root} here, run this in the folder where {run.folder} was made')
    try:
        return DATASETS.build(deepcopy(dataset))
    except Exception as error:  # data sets fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f'the validation data of {run.folder} cannot be read: {reason}') from error


def _read(run: Run, name: str) -> list[dict]:
    path = run.folder / name
    if not path.is_file():
        raise InputError(f'{path} is missing: tools/test.py writes it')
    return json.loads(path.read_text())


def _spaced(length: int, count: int) -> list[int]:
    """Numbers below ``length`` at equal distances."""
    count = min(length, count)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def _photo(info: dict) -> Photo:
    path = info.get('img_path')
    if path is None:  # small images are arrays in RGB, or grey
        image, name = info['img'], f'image {info.get("sample_idx", "")}'
        image = np.ascontiguousarray(image[..., ::-1] if image.ndim == 3 else image)
    elif Path(path).is_file():
        image, name = mmcv.imread(path), Path(path).name
    else:
        raise InputError(f'image {path} is missing')
    height, width = image.shape[:2]
    if max(height, width) > LONGEST_SIDE:
        image = mmcv.imrescale(image, (LONGEST_SIDE, LONGEST_SIDE))
    _, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return Photo(data_uri(data.tobytes(), 'image/jpeg'), width, height, name)


def data_uri(content: bytes, kind: str) -> str:
    """A file's content as an address that a page holds inside."""
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'

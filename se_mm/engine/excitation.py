"""Data sets, groups of images and scores of a config, for the analysis of gates."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from se_mm.analysis.gates import Batch
from se_mm.analysis.scores import BoxAP, Score, TopOneError
from se_mm.utils import InputError
from se_mm.utils.config import LOADERS, leaf_datasets, type_name

SPLITS = tuple(loader.removesuffix('_dataloader') for loader in LOADERS)
OBJECTS = {'no object': 1, '1 object': 2, '2 to 4 objects': 5, '5 to 9 objects': 10, '10 or more objects': np.inf}
SIZES = {'small objects': 32**2, 'medium objects': 96**2, 'large objects': np.inf}  # boxes, in square pixels


@dataclass
class GateData:
    """Images of a data set, and the groups that they are in.

    Attributes:
        dataset: of MMEngine, with the test pipeline.
        places: numbers of the images that are looked at, in the order in which they were drawn.
        groupings: names of groups by name of the division.
        labels: of each image by its number.
        members: groups of each image by its number, see :meth:`se_mm.analysis.gate_statistics.GateStatistics.add`.
        batch_size: images that a model gets at once.
        num_workers: processes that load images.
    """

    dataset: object
    places: list[int]
    groupings: dict[str, list[str]]
    labels: list[list[int]]
    members: list[list[int]]
    batch_size: int
    num_workers: int

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise InputError if a class does not exist or has no image."""
        classes = self.groupings.get('class', [])
        for name in names:
            if name not in classes:
                raise InputError(f'class {name} does not exist: choose of {", ".join(classes) or "none"}')
            if not any(classes.index(name) + 1 in self.members[place] for place in self.places):
                raise InputError(f'class {name} has no images among the {len(self.places)} that are looked at')

    def some(self, images: int) -> GateData:
        """The images that were drawn first."""
        return replace(self, places=self.places[:images])

    def number_of_batches(self, processes: int = 1) -> int:
        """Of the process with most."""
        return -(-len(self.places) // (self.batch_size * processes))

    def batches(self, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """This process's share."""
        mine, size = sorted(self.places)[rank::processes], self.batch_size
        loader = DataLoader(self.dataset, size, sampler=mine, num_workers=self.num_workers, collate_fn=pseudo_collate)
        for i, inputs in enumerate(loader):
            numbers = mine[i * size : (i + 1) * size]
            yield Batch(inputs, [self.members[number] for number in numbers], numbers)


def gate_data(
    cfg: Config,
    *,
    split: str = 'test',
    images: int | None = None,
    images_per_class: int | None = None,
    groups_file: Path | None = None,
    seed: int = 0,
) -> GateData:
    """The images of a config's data set that gates are looked at for.

    Args:
        cfg: of a classifier or a detector.
        split: one of ``SPLITS``; images are prepared by the test pipeline.
        images: at most so many, drawn at random.
        images_per_class: as many as it takes until every class has so many, drawn at random; an image counts for each
            of its classes.
        groups_file: CSV file with the columns ``image``, a file name or the end of a path, and ``group``.
        seed: of the drawing.

    Raises:
        InputError: the config has no such split, the split has no images, there are no labels for
            ``images_per_class``, or the file of groups does not fit.
    """
    dataset = _build(cfg, split)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    if not infos:
        raise InputError(f'{split}_dataloader of {cfg.filename} has no images')
    groupings: dict[str, list[str]] = {}
    groups = [[] for _ in infos]

    def divide(name: str, names: Sequence[str], of_each: Sequence[Sequence[int]]) -> None:
        first = 1 + sum(map(len, groupings.values()))
        groupings[name] = list(names)
        for mine, found in zip(groups, of_each):
            mine.extend(first + group for group in sorted(set(found)))

    labels = [_labels(info) for info in infos]
    number = 1 + max((label for found in labels for label in found), default=-1)
    classes = dataset.metainfo.get('classes') or [str(label) for label in range(number)]
    if number > len(classes):
        raise InputError(f'{split}_dataloader of {cfg.filename} has the label {number - 1}, but {len(classes)} classes')
    if number:
        divide('class', classes, labels)
    if 'instances' in infos[0]:
        boxes = [[box for box in info['instances'] if not box.get('ignore_flag')] for info in infos]
        divide('number of objects', list(OBJECTS), [[_first_above(OBJECTS, len(found))] for found in boxes])
        areas = [[(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box['bbox'] for box in found)] for found in boxes]
        divide('size of objects', list(SIZES), [[_first_above(SIZES, area) for area in found] for found in areas])
    if groups_file is not None:
        divide('group', *_read_groups(groups_file, [info.get('img_path', '') for info in infos]))
    places = np.random.default_rng(seed).permutation(len(infos)).tolist()
    if images_per_class is not None:
        if not number:
            raise InputError(f'--images-per-class: {split}_dataloader of {cfg.filename} has no labels')
        seen: Counter[int] = Counter()
        chosen = []
        for place in places:
            if any(seen[label] < images_per_class for label in labels[place]):
                chosen.append(place)
                seen.update(set(labels[place]))
        places = chosen
    # detectors pad the images of a batch to one shape, and gates would depend on the neighbours of an image
    batch_size = cfg.test_dataloader.batch_size if cfg.default_scope == 'mmpretrain' else 1
    workers = cfg.test_dataloader.get('num_workers', 0)
    return GateData(dataset, places[:images], groupings, labels, groups, batch_size, workers)


def _build(cfg: Config, split: str) -> object:
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise InputError(f'{cfg.filename} has no {split}_dataloader')
    if not cfg.get('test_dataloader'):
        raise InputError(f'{cfg.filename} has no test_dataloader, whose pipeline prepares the images')
    pipeline = next(leaf_datasets(cfg.test_dataloader.dataset))['pipeline']
    parts = [dict(dataset, pipeline=pipeline) for dataset in leaf_datasets(loader.dataset)]
    if cfg.default_scope == 'mmdet':
        for part in parts:
            part['test_mode'] = True
    built = DATASETS.build(parts[0] if len(parts) == 1 else dict(type='ConcatDataset', datasets=parts))
    built.full_init()
    return built


def _labels(info: Mapping) -> list[int]:
    if 'instances' in info:
        return [box['bbox_label'] for box in info['instances'] if not box.get('ignore_flag')]
    label = info.get('gt_label')
    return [] if label is None else [int(part) for part in np.atleast_1d(label)]


def _first_above(limits: Mapping[str, float], value: float) -> int:
    return next(i for i, limit in enumerate(limits.values()) if value < limit)


def _read_groups(path: Path, images: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            rows = [(row['image'], row['group']) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f'{path} cannot be read ({error!r}): it is a CSV file with the columns image and group'
        ) from error
    if not rows or not all(image and group for image, group in rows):
        raise InputError(f'{path}: give an image and its group in every row, and at least one row')
    names = list(dict.fromkeys(group for _, group in rows))
    ends: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        parts = Path(image).parts
        for n in range(1, len(parts) + 1):
            ends.setdefault('/'.join(parts[-n:]), []).append(i)
    of_each: list[list[int]] = [[] for _ in images]
    for image, group in rows:
        if len(found := ends.get(image, [])) != 1:
            raise InputError(f'{path}: {image} is the end of {len(found)} paths of the data set, instead of one')
        of_each[found[0]].append(names.index(group))
    return names, of_each


def score_of(cfg: Config, data: GateData) -> Score | None:
    """The number by which a config's network is judged: top-1 error or AP.

    Returns:
        None if the config has neither, images have no label or several, or there are no objects.
    """
    labels = [data.labels[place] for place in data.places]
    if cfg.default_scope == 'mmpretrain':
        if any(len(found) != 1 for found in labels):
            return None
        ((_, most),) = Counter(label for (label,) in labels).most_common(1)
        return TopOneError(chance=100 * (1 - most / len(labels)))
    evaluators = cfg.get('test_evaluator') or {}
    evaluators = evaluators if isinstance(evaluators, list | tuple) else [evaluators]
    if any(type_name(evaluator) == 'CocoMetric' for evaluator in evaluators) and hasattr(data.dataset, 'cat_ids'):
        return BoxAP(data.dataset.ann_file, data.dataset.cat_ids) if any(labels) else None
    return None

"""Checks of the files of a config's data set, of whatever kind it is."""

from __future__ import annotations

import inspect
import os

from mmengine.registry import DATASETS

from se_mm.utils import InputError

from .coco import check_coco, reads_coco_files
from .folders import listed_images, reads_lists
from .images import check_images
from .places365 import Places365


def check_dataset(dataset: dict, alone: bool = False, skippable: int | None = None) -> tuple[int, str] | None:
    """Check that the files of a data set are there and fit each other.

    Args:
        dataset: its config.
        alone: no other data set is trained on, so that this one needs something to learn from.
        skippable: how many broken images training may replace, None in evaluation.

    Returns:
        The number of classes and the file that says so; None if that is not known.

    Raises:
        InputError: naming the file or key that is wrong, and the remedy.
    """
    cls = dataset['type']
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            cls = registry.get(cls)
    if cls is None:
        raise InputError(f'no data set is registered as {dataset["type"]!r}')
    if cls is Places365:
        places = Places365(**{k: v for k, v in dataset.items() if k in ('data_root', 'split', 'small')}, pipeline=[])
        places.check_images(skippable)
        return len(places.metainfo['classes']), str(places.root / 'categories_places365.txt')
    root = dataset.get('data_root') or ''
    download = inspect.signature(cls).parameters.get('download')
    if dataset.get('backend_args') or '://' in root or dataset.get('download', download and download.default):
        return None  # not files of this machine, or not yet
    if root and not (os.path.isdir(root) and os.listdir(root)):
        state = 'is empty' if os.path.isdir(root) else 'does not exist'
        raise InputError(
            f'data_root {root} {state}: put the data set ({cls.__name__}) there, or set data_root to where it is, '
            '--cfg-options data_root=FOLDER'
        )
    if reads_lists(cls):
        check_images(*listed_images(dataset, cls), skippable)
        return None
    return check_coco(dataset, cls, alone, skippable) if reads_coco_files(cls) else None

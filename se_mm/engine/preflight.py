"""What can be wrong with a config is found before any long work starts."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from se_mm.checkpoints import Report, check_fit, load_backbone, read_checkpoint, recognise
from se_mm.datasets import Places365
from se_mm.models.base import Backbone, is_pretrained, loading_arguments
from se_mm.utils import InputError

SCOPES = ('mmdet', 'mmpretrain')
CLASS_HEAD = re.compile(r'\.(bbox_head|mask_head|head)(\.\d+)?$')


def check_config(cfg: Config, *, training: bool, checkpoint: str | None = None) -> None:
    """Check the packages, the model, the checkpoints and the data that a config names.

    Args:
        cfg: the config, command line merged.
        training: look at the data of training and validation; otherwise of test.
        checkpoint: file that will be loaded or resumed from.

    Raises:
        InputError: the first thing that is wrong, with its remedy.
    """
    check_scope(cfg)
    model = build_model(cfg)
    if checkpoint is not None:
        check_checkpoint(checkpoint, model, training=training, resume=training and bool(cfg.get('resume')))
    if training:
        check_pretrained(cfg.model, cfg.get('data_preprocessor'))
    checked = []
    for kind in ('train', 'val') if training else ('test',):
        datasets = list(leaf_datasets((cfg.get(f'{kind}_dataloader') or {}).get('dataset')))
        for dataset in datasets:
            if dataset not in checked:
                check_dataset(dataset, cfg)
                checked.append(dataset)
        if len(datasets) == 1:
            check_evaluator(cfg, kind, datasets[0])


def check_scope(cfg: Config) -> None:
    """Import the package that the config belongs to."""
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise InputError(f'{cfg.filename}: default_scope={scope!r}, these tools run {" and ".join(SCOPES)} configs')
    module = 'mmcv.ops' if scope == 'mmdet' else scope
    try:
        importlib.import_module(scope)
        importlib.import_module(module)
    except ImportError as error:
        remedy = (
            "mmcv's compiled operators do not load: install a full mmcv (not mmcv-lite) compiled for this torch"
            if module == 'mmcv.ops' and scope not in str(error)
            else f'{scope} does not import: install it, e.g. with pip install "se_mm[onedl]"'
        )
        raise InputError(f'{cfg.filename}: {remedy} ({error})') from error
    if scope == 'mmdet' and torch.cuda.is_available():
        from mmcv.ops import get_compiling_cuda_version

        if get_compiling_cuda_version() == 'not available':
            raise InputError(
                'a GPU is visible, but mmcv was compiled without its CUDA operators: compile it with nvcc, '
                'or set CUDA_VISIBLE_DEVICES= to run on the CPU'
            )
    init_default_scope(scope)


def build_model(cfg: Config) -> nn.Module:
    """Build the config's model, naming what is wrong with its arguments."""
    try:
        return MODELS.build(deepcopy(cfg.model))  # some of mmdet's modules edit their config
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise InputError(f'{cfg.filename}: the model cannot be built: {reason}') from error


def check_checkpoint(path: str, model: nn.Module, *, training: bool, resume: bool) -> None:
    """Read a checkpoint of the whole model; all of it must fit, unless training only starts from it."""
    checkpoint = read_checkpoint(path)
    if resume:
        missing = sorted({'meta', 'message_hub', 'optimizer'} - set(checkpoint))
        if missing:
            raise InputError(
                f'checkpoint {path} cannot be resumed, it has no {", ".join(missing)}: start from its weights with '
                f'--cfg-options load_from={path}'
            )
        if 'config' in (checkpoint['meta'] or ()):  # which MMEngine would run, and writes as cfg
            raise InputError(f'checkpoint {path} is refused: its meta.config would be run as a program')
    weights = checkpoint['state_dict']
    try:
        check_fit(weights, model, path, strict=resume or not training)
    except InputError:
        try:
            found = recognise(weights, path)
        except InputError:  # several backbones
            found = None
        if found is None or not found.renamed:
            raise
        raise InputError(
            f'checkpoint {path} has the names of another project ({found.format.name}): convert it first, '
            f'python tools/convert_checkpoint.py {path} NEW.pth'
        ) from None


def check_pretrained(node: object, images: dict | None, path: str = 'model') -> None:
    """Read the checkpoints that parts of the model are initialised from; those of other packages' parts if local.

    Args:
        node: config of the model or of a part, or a list of some.
        images: config of the data preprocessor.
        path: of ``node`` in the config.
    """
    if isinstance(node, list | tuple):
        for i, item in enumerate(node):
            check_pretrained(item, images, f'{path}.{i}')
    if not isinstance(node, dict):
        return
    images = node.get('data_preprocessor') or images
    for key, value in node.items():
        if key != 'init_cfg':
            check_pretrained(value, images, f'{path}.{key}')
    given = node.get('init_cfg')
    cfgs = [('init_cfg', cfg) for cfg in (given if isinstance(given, list) else [given]) if is_pretrained(cfg)]
    if 'type' in node and isinstance(node.get('pretrained'), str):
        cfgs.append(('pretrained', dict(type='Pretrained', checkpoint=node['pretrained'])))
    for key, cfg in cfgs:
        part = MODELS.build(deepcopy({k: v for k, v in node.items() if k not in ('init_cfg', 'pretrained')}))
        checkpoint = str(cfg.get('checkpoint'))
        try:
            if isinstance(part, Backbone):
                check_images(load_backbone(part, **loading_arguments(cfg)), images, path)
            elif '://' not in checkpoint:
                weights = read_checkpoint(checkpoint)['state_dict']
                prefix = f'{cfg["prefix"].rstrip(".")}.' if cfg.get('prefix') else ''
                weights = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
                check_fit(weights, part, checkpoint, strict=False)
        except InputError as error:
            if '://' in checkpoint or Path(checkpoint).exists():
                raise InputError(f'{path}.{key}: {error}') from error
            raise InputError(
                f'{path}.{key}: {error}. Train the backbone first (configs/README.md lists the ImageNet '
                f'configs), or give another file with --cfg-options {path}.init_cfg.checkpoint=FILE'
            ) from error


def check_images(report: Report, images: dict | None, path: str) -> None:
    """Warn if images are normalised otherwise than the weights expect."""
    expected = report.format and report.format.normalisation
    if not expected or not images or images.get('mean') is None:
        return
    rgb = images.get('bgr_to_rgb') or images.get('to_rgb')
    order = slice(None) if rgb else slice(None, None, -1)
    given = {key: list(images.get(key) or (1.0,) * 3)[order] for key in ('mean', 'std')}
    if any(abs(a - b) > 1 for key in given for a, b in zip(given[key], expected[key])):
        print_log(
            f'{path}: the weights of {report.source} expect RGB images with mean={expected["mean"]}, '
            f'std={expected["std"]}, but data_preprocessor gives them mean={given["mean"]}, std={given["std"]} (RGB): '
            'set mean, std and bgr_to_rgb=True (mmpretrain: to_rgb=True)',
            logger='current',
            level=logging.WARNING,
        )


def leaf_datasets(dataset: dict | None) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if not dataset:
        return
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        yield dataset
    for part in inner:
        yield from leaf_datasets(part)


def type_name(cfg: dict) -> str:
    """The name of a config's ``type``, which is a name, with or without scope, or a class."""
    kind = cfg.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def check_dataset(dataset: dict, cfg: Config) -> None:
    """Check that the files of a data set are there and fit the model."""
    cls = dataset['type']
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            cls = registry.get(cls)
    if cls is None:
        raise InputError(f'{cfg.filename}: no data set is registered as {dataset["type"]!r}')
    if cls is Places365:
        places = Places365(**{k: v for k, v in dataset.items() if k in ('data_root', 'split', 'small')}, pipeline=[])
        places.check_images()
        check_num_classes(cfg, len(places.metainfo['classes']), str(places.root / 'categories_places365.txt'))
        return
    root = dataset.get('data_root') or ''
    download = inspect.signature(cls).parameters.get('download')
    if dataset.get('backend_args') or '://' in root or dataset.get('download', download and download.default):
        return  # not files of this machine, or not yet
    if root and not (os.path.isdir(root) and os.listdir(root)):
        state = 'is empty' if os.path.isdir(root) else 'does not exist'
        raise InputError(f'data_root {root} {state}: put the data set there, or set data_root of {cls.__name__}')
    if is_plain_coco(cls):
        check_coco(dataset, cls, cfg)


def is_plain_coco(cls: type) -> bool:
    """Whether a data set reads its annotation file the way mmdet's CocoDataset does."""
    coco = next((base for base in cls.__mro__ if base.__name__ == 'CocoDataset'), None)
    methods = ('load_data_list', 'parse_data_info')
    return coco is not None and all(getattr(cls, name) is getattr(coco, name) for name in methods)


def check_evaluator(cfg: Config, kind: str, dataset: dict) -> None:
    """Check that a COCO evaluator has the annotations of the data set that it evaluates."""
    evaluator = cfg.get(f'{kind}_evaluator')
    if not isinstance(evaluator, dict) or type_name(evaluator) != 'CocoMetric' or type_name(dataset) != 'CocoDataset':
        return
    expected, path = (
        os.path.join(dataset.get('data_root') or '', dataset.get('ann_file', '')),
        evaluator.get('ann_file'),
    )
    if path and not dataset.get('backend_args') and os.path.realpath(path) != os.path.realpath(expected):
        raise InputError(
            f'{kind}_evaluator.ann_file={path} is not the annotation file of {kind}_dataloader ({expected}): '
            f'set {kind}_evaluator.ann_file={expected}'
        )


def check_coco(dataset: dict, cls: type, cfg: Config) -> None:
    """Check a COCO annotation file against its images and against the model."""
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
    if classes:
        check_num_classes(cfg, len(classes), path)
    _check_image_files(os.path.join(root, (dataset.get('data_prefix') or {}).get('img', '')), images, path)


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


def check_num_classes(cfg: Config, classes: int, source: str) -> None:
    """Compare a data set's number of classes with ``num_classes`` of the model's heads."""
    for key, value in _num_classes(cfg.model):
        if value != classes:
            raise InputError(f'{key}={value}, but {source} gives {classes} classes: set {key}={classes}')


def _num_classes(cfg: object, path: str = 'model') -> Iterator[tuple[str, int]]:
    # Only heads that name objects or scenes: other heads count anchors, stuff or pixels' classes.
    if isinstance(cfg, list | tuple):
        for i, part in enumerate(cfg):
            yield from _num_classes(part, f'{path}.{i}')
    elif isinstance(cfg, dict):
        for key, value in cfg.items():
            if key == 'num_classes' and CLASS_HEAD.search(path):
                yield f'{path}.{key}', value
            else:
                yield from _num_classes(value, f'{path}.{key}')

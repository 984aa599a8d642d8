"""What can be wrong with a config is found before any long work starts."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from se_mm.datasets.checks import check_dataset
from se_mm.models.base import Backbone
from se_mm.utils import InputError
from se_mm.utils.config import build_model, is_pretrained, leaf_datasets, type_name, use_scope
from se_mm.weights import (
    LoadReport,
    load_backbone,
    load_model,
    loading_arguments,
    read_checkpoint,
    recognise,
)

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
    use_scope(cfg)
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
                if (classes := check_dataset(dataset)) and classes[0]:
                    check_num_classes(cfg, *classes)
                checked.append(dataset)
        if len(datasets) == 1:
            check_evaluator(cfg, kind, datasets[0])


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
        load_model(model, weights, path, strict=resume or not training)
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
                check_normalisation(load_backbone(part, **loading_arguments(cfg)), images, path)
            elif '://' not in checkpoint:
                weights = read_checkpoint(checkpoint)['state_dict']
                prefix = f'{cfg["prefix"].rstrip(".")}.' if cfg.get('prefix') else ''
                weights = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
                load_model(part, weights, checkpoint, strict=False)
        except InputError as error:
            if '://' in checkpoint or Path(checkpoint).exists():
                raise InputError(f'{path}.{key}: {error}') from error
            raise InputError(
                f'{path}.{key}: {error}. Train the backbone first (configs/README.md lists the ImageNet '
                f'configs), or give another file with --cfg-options {path}.init_cfg.checkpoint=FILE'
            ) from error


def check_normalisation(report: LoadReport, images: dict | None, path: str) -> None:
    """Warn if images are normalised otherwise than the weights expect."""
    expected = report.format.normalisation
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

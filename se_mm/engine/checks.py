"""What can be wrong with a config is found before any long work starts."""

from __future__ import annotations

import logging
import os
import re

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from torch import nn

from se_mm.datasets.checks import check_dataset
from se_mm.models import SEResLayer, SEResNet
from se_mm.models.base import Backbone
from se_mm.utils import InputError
from se_mm.utils.config import build_model, config_parts, leaf_datasets, type_name, use_scope

from .weight_checks import check_checkpoint, check_frozen, check_pretrained

CLASS_HEAD = re.compile(r'\.(bbox_head|mask_head|head)(\.\d+)?$')


def check_config(cfg: Config, *, training: bool, checkpoint: str | None = None, skip_broken: int = 0) -> None:
    """Check the packages, the model, the checkpoints and the data that a config names.

    Args:
        cfg: the config, command line merged.
        training: look at the data of training and validation; otherwise of test.
        checkpoint: file that will be loaded or resumed from.
        skip_broken: how many broken images training may replace.

    Raises:
        InputError: the first thing that is wrong, with its remedy.
    """
    options = cfg.get('compile')  # of MMEngine's runner: True, or the arguments of torch.compile
    if options is True or isinstance(options, dict) and options.get('backend', 'inductor') == 'inductor':
        check_compiler('compile')
    use_scope(cfg)
    model = build_model(cfg)
    if training and any(isinstance(module, Backbone) and module.deployed for module in model.modules()):
        raise InputError(
            f'{cfg.filename}: the backbone is deployed, and cannot be trained: train without deploy=True, from the '
            'weights that were deployed'
        )
    if checkpoint is not None:
        check_checkpoint(checkpoint, model, training=training, resume=cfg if training and cfg.get('resume') else None)
    if training:
        check_pretrained(cfg, model)
        if checkpoint is None:
            check_frozen(cfg, model)
        check_sync_norms(cfg, model)
        check_shared_heads(model)
    check_data(cfg, ('train', 'val') if training else ('test',), skip_broken)


def check_compiler(wanted_by: str) -> None:
    """Refuse torch.compile on a CPU where there is no C++ compiler.

    Args:
        wanted_by: the option that asks for torch.compile.

    Raises:
        InputError: torch finds no compiler.
    """
    if torch.cuda.is_available():
        return
    # torch's own search: it depends on torch's version, and imports much
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError(
            f'{wanted_by}: torch.compile needs a C++ compiler on a CPU and found none: '
            'install one (apt-get install g++) or let the environment variable CXX name one'
        ) from error


def check_sync_norms(cfg: Config, model: nn.Module) -> None:
    """Refuse norms that exchange statistics between CPU processes: torch has them for GPUs only.

    Raises:
        InputError: with the options that replace them.
    """
    if not is_distributed() or torch.cuda.is_available():
        return
    norms = [module for module in model.train().modules() if type(module).__name__ == 'SyncBatchNorm']
    if cfg.get('sync_bn'):
        options = ['sync_bn=None']
    elif any(norm.training for norm in norms):
        parts = config_parts(cfg.model, 'model')
        options = [f'{path}.type=BN' for path, part in parts if type_name(part) in ('SyncBN', 'MMSyncBN')]
    else:
        return
    raise InputError(
        f'SyncBN needs GPUs, and this run has none: set {" ".join(options) or "BN in norm_cfg"} by '
        '--cfg-options, or train in one process without --launcher, where MMEngine takes BN instead'
    )


def check_shared_heads(model: nn.Module) -> None:
    """Refuse a shared head that does not go on where the backbone ends, and warn of one that goes on in another way.

    Raises:
        InputError: naming the stage, or the stages of the backbone, to set.
    """
    for name, detector in model.named_modules():
        backbone, neck = getattr(detector, 'backbone', None), getattr(detector, 'neck', None)
        head = getattr(getattr(detector, 'roi_head', None), 'shared_head', None)
        if head is None or neck is not None or not isinstance(backbone, SEResNet):
            continue
        prefix = f'model.{name}'.rstrip('.')
        path, stages = f'{prefix}.roi_head.shared_head', max(backbone.out_indices) + 1
        if not isinstance(head, SEResLayer):
            if not any(backbone.with_se):
                continue
            print_log(
                f'{path} is a {type(head).__name__}, without SE: write se_mm.SEResLayer for SE in the last stage',
                logger='current',
                level=logging.WARNING,
            )
        elif stages > 3:
            raise InputError(
                f'{path} is the last stage of the network, and {prefix}.backbone has that stage, too: set '
                f'{prefix}.backbone.num_stages=3, with three strides and dilations, and out_indices=(2,)'
            )
        elif head.stage != stages:
            raise InputError(
                f'{path}.stage={head.stage} does not follow the {stages} stages of the backbone: set stage={stages}'
            )
        elif head.style != backbone.style:
            print_log(
                f"{path}.style={head.style!r}, but the backbone's is {backbone.style!r}: weights need one style",
                logger='current',
                level=logging.WARNING,
            )


def check_data(cfg: Config, splits: tuple[str, ...], skip_broken: int = 0) -> None:
    """Check the files of data sets, and that heads and evaluators fit them.

    Args:
        cfg: the config.
        splits: of 'train', 'val' and 'test'.
        skip_broken: how many broken images of a data set training may replace.

    Raises:
        InputError: the first thing that is wrong, with its remedy.
    """
    checked = []
    for split in splits:
        datasets = list(leaf_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset')))
        for dataset in datasets:
            if dataset not in checked:
                training = split == 'train'
                classes = check_dataset(dataset, training and len(datasets) == 1, skip_broken if training else None)
                if classes and classes[0]:
                    check_num_classes(cfg, *classes)
                checked.append(dataset)
        if len(datasets) == 1:
            check_evaluator(cfg, split, datasets[0])


def check_evaluator(cfg: Config, split: str, dataset: dict) -> None:
    """Check that a COCO evaluator has the annotations of the data set that it evaluates."""
    evaluator = cfg.get(f'{split}_evaluator')
    if not isinstance(evaluator, dict) or type_name(evaluator) != 'CocoMetric' or type_name(dataset) != 'CocoDataset':
        return
    expected, path = (
        os.path.join(dataset.get('data_root') or '', dataset.get('ann_file', '')),
        evaluator.get('ann_file'),
    )
    if path and not dataset.get('backend_args') and os.path.realpath(path) != os.path.realpath(expected):
        raise InputError(
            f'{split}_evaluator.ann_file={path} is not the annotation file of {split}_dataloader ({expected}): '
            f'set {split}_evaluator.ann_file={expected}'
        )


def check_num_classes(cfg: Config, classes: int, source: str) -> None:
    """Compare a data set's number of classes with ``num_classes`` of the model's heads.

    Only heads that name objects or scenes are looked at: other heads count anchors, stuff or pixels' classes.
    """
    for path, part in config_parts(cfg.model, 'model'):
        if CLASS_HEAD.search(path) and part.get('num_classes', classes) != classes:
            key = f'{path}.num_classes'
            raise InputError(f'{key}={part["num_classes"]}, but {source} gives {classes} classes: set {key}={classes}')

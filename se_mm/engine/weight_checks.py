"""Checks of the weights that a run starts from: a checkpoint of the model, and those of its parts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from se_mm.models.base import Backbone
from se_mm.utils import InputError
from se_mm.utils.config import config_parts, is_pretrained, type_name
from se_mm.weights import LoadReport, load_backbone, load_model, loading_arguments, read_checkpoint, recognise
from se_mm.weights.pickles import warn_of_attacks

from .resume_checks import check_resumable


def check_checkpoint(path: str, model: nn.Module, *, training: bool, resume: Config | None = None) -> dict:
    """Read a checkpoint of the whole model; all of it must fit, unless training only starts from it.

    Args:
        path: its file.
        model: built for the check; it gets the weights.
        training: the checkpoint is to be trained, otherwise to be evaluated.
        resume: config of the training that goes on where the checkpoint was written.

    Returns:
        The checkpoint.

    Raises:
        InputError: the file is missing, damaged or does not fit, or cannot be resumed.
    """
    checkpoint = read_checkpoint(path)
    if resume:
        check_resumable(path, checkpoint, resume, model)
    weights = checkpoint['state_dict']
    try:
        load_model(model, weights, path, strict=bool(resume) or not training)
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
    return checkpoint


def check_pretrained(cfg: Config, model: nn.Module) -> None:
    """Load the checkpoints that parts of a config are initialised from into the modules that were built of the parts.

    Args:
        cfg: the config.
        model: built of it for the check; it gets the weights.

    Raises:
        InputError: a checkpoint is missing, damaged or does not fit; it leaves random SE layers that are frozen.
    """
    parts = dict(config_parts(cfg.model, 'model'))
    for path, key, init_cfg in _pretrained(parts):
        checkpoint = str(init_cfg.get('checkpoint'))
        module = _module_of(path, init_cfg, model)
        try:
            report = _try_weights(init_cfg, checkpoint, module)
        except InputError as error:
            if '://' in checkpoint or Path(checkpoint).exists():
                raise InputError(f'{path}.{key}: {error}') from error
            option = f'{path}.init_cfg.checkpoint' if key == 'init_cfg' else f'{path}.pretrained'
            remedy = f'give another file with --cfg-options {option}=FILE'
            if isinstance(module, Backbone):
                remedy = f'train the backbone first (configs/README.md lists the ImageNet configs), or {remedy}'
            raise InputError(f'{path}.{key}: {error}: {remedy}') from error
        if report and report.frozen and not report.identity:
            raise InputError(f'{path}.{key}: {report.remedy_for_frozen}')
        if report:
            check_normalisation(report, _images_of(path, parts) or cfg.get('data_preprocessor'), path)


def _pretrained(parts: dict[str, dict]) -> Iterator[tuple[str, str, dict]]:
    """Path, key and init_cfg of the parts that are initialised from checkpoints."""
    for path, part in parts.items():
        for init_cfg in _listed(part.get('init_cfg')):
            if is_pretrained(init_cfg):
                yield path, 'init_cfg', init_cfg
        if 'type' in part and isinstance(part.get('pretrained'), str):
            yield path, 'pretrained', dict(type='Pretrained', checkpoint=part['pretrained'])


def _listed(init_cfg: dict | list[dict] | None) -> list[dict]:
    return list(init_cfg) if isinstance(init_cfg, list | tuple) else [init_cfg]


def _module_of(path: str, init_cfg: dict, model: nn.Module) -> nn.Module | None:
    """What a part of the config became: at its path or, where parents give their children other names, elsewhere."""
    found = {
        f'model.{name}'.rstrip('.'): module
        for name, module in model.named_modules()
        if init_cfg in _listed(getattr(module, 'init_cfg', None))
    }
    return found.get(path, next(iter(found.values()), None))


def _try_weights(init_cfg: dict, checkpoint: str, module: nn.Module | None) -> LoadReport | None:
    """Load weights into a module; those of other packages' modules only from local files."""
    if isinstance(module, Backbone):
        return load_backbone(module, **loading_arguments(init_cfg))
    if '://' not in checkpoint:
        weights = read_checkpoint(checkpoint)['state_dict']
        prefix = f'{init_cfg["prefix"].rstrip(".")}.' if init_cfg.get('prefix') else ''
        weights = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        if module is not None and not getattr(module, 'convert_weights', False):  # which renames them
            remedy = f"Set init_cfg.prefix to what stands before the module's names, e.g. 'neck.' (is {prefix!r})"
            load_model(module, weights, checkpoint, strict=False, remedy=remedy)
    elif not checkpoint.endswith('.safetensors'):
        warn_of_attacks(checkpoint)  # MMEngine will read the file
    return None


def _images_of(path: str, parts: dict[str, dict]) -> dict | None:
    """The config of the data preprocessor of a part, or of the nearest part around it."""
    while path not in parts or not parts[path].get('data_preprocessor'):
        path = path.rpartition('.')[0]
        if not path:
            return None
    return parts[path]['data_preprocessor']


def check_normalisation(report: LoadReport, images: dict | None, path: str) -> None:
    """Warn if the data preprocessor normalises images otherwise than the weights of a part expect.

    Args:
        report: of the weights.
        images: config of the data preprocessor.
        path: of the part in the config.
    """
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


def check_frozen(cfg: Config, model: nn.Module) -> None:
    """Refuse residual backbones whose frozen layers or batch norms no weights are given for.

    Backbones of this package are looked at, the ResNets of mmdet and mmpretrain, and shared heads.

    Raises:
        InputError: with the options that let all layers learn.
    """
    modules, parts = dict(model.named_modules()), dict(config_parts(cfg.model, 'model'))
    for name, module in modules.items():
        kinds = [cls.__name__ for cls in type(module).__mro__]
        if not isinstance(module, Backbone) and not {'ResNet', 'ResLayer'} & set(kinds):
            continue
        above = [modules[name[:i]] for i, char in enumerate(name) if char == '.']
        if any(is_pretrained(getattr(part, 'init_cfg', None)) for part in (model, *above, *module.modules())):
            continue
        remedies = []
        if getattr(module, 'frozen_stages', -1) >= 0:
            remedies.append('frozen_stages=-1')
        if getattr(module, 'norm_eval', False) and any(isinstance(part, _BatchNorm) for part in module.modules()):
            remedies.append('norm_eval=False')
        if remedies and (getattr(module, 'norm_cfg', None) or {}).get('requires_grad') is False:
            remedies.append('norm_cfg.requires_grad=True')
        if remedies:
            path = f'model.{name}'
            if path not in parts:  # its parent gives it another name
                path = next((path for path, part in parts.items() if type_name(part) == kinds[0]), path)
            options = ' '.join(f'{path}.{remedy}' for remedy in remedies)
            raise InputError(
                f'{path} ({kinds[0]}) has no weights, and its frozen layers or batch norms would stay at random '
                f'values: let them learn, --cfg-options {options}, or give weights by its init_cfg or load_from'
            )

"""Reading configs: files, names of types, and what stands inside."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from .files import InputError

SCOPES = ('mmdet', 'mmpretrain')


def config_path(config: str | os.PathLike) -> Path:
    """The file of a config, which is a path or ``PACKAGE::NAME``, one that came with an installed package.

    Raises:
        InputError: there is no such file or package.
    """
    package, colons, name = str(config).partition('::')
    path = Path(config)
    if colons:
        # MMEngine's own functions for such names install packages that they miss.
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise InputError(f'config {config}: {package} is not installed')
        path = Path(spec.origin).parent / '.mim' / 'configs' / name
    if not path.is_file():
        raise InputError(f'config {config} does not exist' + (f': there is no {path}' if colons else ''))
    return path


def plain_twin(config: str | os.PathLike) -> Path:
    """The plain twin of one of this project's configs; a plain config is returned as it is.

    The parts of a config's name are joined by ``_``. The plain twin lies in the same folder, and its name lacks the
    part that is ``se`` or begins with ``se-``.
    """
    path = Path(config)
    return path.with_stem('_'.join(part for part in path.stem.split('_') if part.partition('-')[0] != 'se'))


def load_config(config: str | os.PathLike, options: dict | None = None, work_dir: str | None = None) -> Config:
    """A config, given as for :func:`config_path`, with the command line's overrides and its work dir.

    The work dir is the argument, else the config's, else ``./work_dirs/<name of the config>``.

    Raises:
        InputError: the file is missing or not a config, or an override does not fit it.
    """
    path = config_path(config)
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(options or {})
    except Exception as error:
        # A config is a program: it can fail in any way.
        raise InputError(f'config {config} cannot be read: {type(error).__name__}: {error}') from error
    if 'model' not in cfg:
        raise InputError(f'config {config} has no model: is it a config of a detector or classifier?')
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(path).stem))
    return cfg


def use_scope(cfg: Config) -> None:
    """Import the package that the config belongs to, and look names up there from now on.

    Raises:
        InputError: the package is none of ``SCOPES``, does not import, or lacks operators that this machine needs.
    """
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise InputError(f'{cfg.filename}: default_scope={scope!r}, these tools run {" and ".join(SCOPES)} configs')
    module = 'mmcv.ops' if scope == 'mmdet' else scope
    try:
        if scope == 'mmdet':
            from .. import mmcv_ext  # noqa: F401  operators, where mmcv has none
        importlib.import_module(scope)
        importlib.import_module(module)
    except ImportError as error:
        remedy = (
            "mmcv's compiled operators do not load: compile mmcv for this torch, or install it without operators"
            if module == 'mmcv.ops' and scope not in str(error)
            else f'{scope} does not import: install it, e.g. with pip install "se_mm[onedl]"'
        )
        raise InputError(f'{cfg.filename}: {remedy} ({error})') from error
    if scope == 'mmdet' and torch.cuda.is_available():
        from mmcv.ops import get_compiling_cuda_version

        if get_compiling_cuda_version() == 'not available':
            raise InputError(
                'a GPU is visible, but mmcv or torchvision was compiled without its CUDA operators: install one that '
                'has them, or set CUDA_VISIBLE_DEVICES= to run on the CPU'
            )
    init_default_scope(scope)


def build_model(cfg: Config) -> nn.Module:
    """Build the config's model.

    Raises:
        InputError: naming what is wrong with the model's arguments.
    """
    try:
        return MODELS.build(deepcopy(cfg.model))  # some of mmdet's modules edit their config
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise InputError(f'{cfg.filename}: the model cannot be built: {reason}') from error


def type_name(cfg: dict) -> str:
    """The name of a config's ``type``, which is a name, with or without scope, or a class."""
    kind = cfg.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def is_pretrained(cfg: dict | list[dict] | None) -> bool:
    """Whether an init_cfg, or one of a list, loads weights."""
    if isinstance(cfg, list | tuple):
        return any(map(is_pretrained, cfg))
    return isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', PretrainedInit)


def leaf_datasets(dataset: dict | None) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if not dataset:
        return
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        yield dataset
    for part in inner:
        yield from leaf_datasets(part)

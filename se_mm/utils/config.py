"""Reading configs: files, names of types, and what stands inside."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from .files import InputError

SCOPES = ('mmdet', 'mmpretrain')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')


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

    A top-level ``data_root`` of the command line, or of a config that inherits its data sets and changes nothing else
    about where they are, moves all data, see :func:`move_data`. The work dir is the argument, else the config's, else
    ``./work_dirs/<name of the config>``.

    Raises:
        InputError: the file is missing or not a config, or an override does not fit it.
    """
    path, options = config_path(config), options or {}
    try:
        from .. import mmcv_ext  # noqa: F401  operators, where mmcv has none: in every process, before mmdet

        cfg = Config.fromfile(path)
    except Exception as error:
        # A config is a program: it can fail in any way.
        raise InputError(f'config {config} cannot be read: {type(error).__name__}: {error}') from error
    if 'model' not in cfg:
        raise InputError(f'config {config} has no model: is it a config of a detector or classifier?')
    if _inherits_data(cfg):
        move_data(cfg, cfg.data_root)
    if 'data_root' in options:
        move_data(cfg, str(options['data_root']))
    for key in options:
        _check_list_index(cfg, key)
    try:
        cfg.merge_from_dict(options)
    except Exception as error:  # of several kinds
        reason = error.args[0] if error.args else type(error).__name__
        raise InputError(f'--cfg-options do not fit {config}: {reason}') from error
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(path).stem))
    return cfg


def _check_list_index(cfg: Config, key: str) -> None:
    # MMEngine makes ``hooks.0=...`` of a list that is not there a dict with the key '0'.
    node, names = cfg, key.split('.')
    for i, name in enumerate(names):
        if isinstance(node, list | tuple):
            node = node[int(name)] if name.isdigit() and int(name) < len(node) else None
        elif name.isdigit() and i and name not in (node or ()):
            above = '.'.join(names[:i])
            raise InputError(f'--cfg-options {key}: {above} is no list, give it as a whole: {above}=[dict(...)]')
        else:
            node = node.get(name) if isinstance(node, Config | dict) else None


def move_data(cfg: Config, root: str) -> None:
    """Put the one ``data_root`` that all data sets of a config have, and all paths below it, to another place.

    The paths are those of ``train_``, ``val_`` and ``test_dataloader`` and of the evaluators.

    Raises:
        InputError: the data sets have several.
    """
    roots = _data_roots(cfg)
    if len(roots) != 1:
        found = f'are in {" and ".join(sorted(roots))}' if roots else 'have no data_root'
        raise InputError(
            f'data_root={root}: the data sets of {cfg.filename} {found}: set data_root of each, as '
            'train_dataloader.dataset.data_root'
        )
    old = roots.pop()

    def moved(text: str) -> str:
        return root.rstrip('/') + text.removeprefix(old) if text == old or text.startswith(f'{old}/') else text

    for key in (*LOADERS, *EVALUATORS):
        if key in cfg:
            cfg[key] = _map_strings(cfg[key], moved)
    print_log(f'data_root={root}: all data sets and evaluators move there from {old}', logger='current')


def _data_roots(cfg: Config) -> set[str]:
    datasets = (part for key in LOADERS for part in leaf_datasets((cfg.get(key) or {}).get('dataset')))
    return {dataset['data_root'].rstrip('/') for dataset in datasets if dataset.get('data_root')}


def _inherits_data(cfg: Config) -> bool:
    """Whether the last file of a chain of configs that sets ``data_root`` leaves all data where the files above do."""
    *above, own = re.split(r'^data_root\s*=', cfg.text, flags=re.MULTILINE)
    roots, root = _data_roots(cfg), cfg.get('data_root')
    if not isinstance(root, str) or not roots or root.rstrip('/') in roots:
        return False
    why = f'they are in {" and ".join(sorted(roots))}'
    if len(roots) == 1:
        literal = re.compile(f'[\'"]{re.escape(*roots)}/?[\'"]')
        inherited, written = literal.search(''.join(above)), literal.search(own)
        if inherited and not written:
            return True
        why = f'{cfg.filename} says itself that {why}' if written else f'no config above says that {why}'
    if len(above) > 1:  # set above, and again
        print_log(f'data_root={root} of {cfg.filename} moves no data: {why}', logger='current')
    return False


def _map_strings(node: object, change: Callable[[str], str]) -> object:
    if isinstance(node, str):
        return change(node)
    if isinstance(node, list | tuple):
        return type(node)(_map_strings(item, change) for item in node)
    if isinstance(node, dict):
        for key, value in list(node.items()):
            node[key] = _map_strings(value, change)
    return node


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
    except (AssertionError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__
        raise InputError(f'{cfg.filename}: the model cannot be built: {" ".join(str(reason).split())}') from error


def type_name(cfg: dict) -> str:
    """The name of a config's ``type``, which is a name, with or without scope, or a class."""
    kind = cfg.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def is_pretrained(cfg: dict | list[dict] | None) -> bool:
    """Whether an init_cfg, or one of a list, loads weights."""
    if isinstance(cfg, list | tuple):
        return any(map(is_pretrained, cfg))
    kind = cfg.get('type') if isinstance(cfg, dict) else None
    if isinstance(kind, str):  # a dumped config of classes writes their modules, too
        return kind.rpartition('.')[2] in ('Pretrained', 'PretrainedInit')
    return kind is PretrainedInit


def leaf_datasets(dataset: dict | None) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if not dataset:
        return
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        yield dataset
    for part in inner:
        yield from leaf_datasets(part)


def config_parts(node: object, path: str) -> Iterator[tuple[str, dict]]:
    """All dicts inside a config, from the inside out, each with its path as in ``--cfg-options``.

    Args:
        node: a config or a part of it, or a list of some.
        path: of ``node``.
    """
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from config_parts(value, f'{path}.{key}')
    if isinstance(node, dict):
        yield path, node

"""Configs that inherit from other configs, for any OpenMMLab tools."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from se_mm.utils import InputError
from se_mm.utils.config import config_path


def check_inheritable(config: str | os.PathLike) -> None:
    """Check that a config in MMEngine's usual syntax can inherit from another one.

    Args:
        config: see :func:`se_mm.utils.config.config_path`.

    Raises:
        InputError: the config is missing, or has the syntax of Python imports.
    """
    path = config_path(config)
    if Config._is_lazy_import(str(path)):
        raise InputError(
            f'config {config} inherits by Python imports, and the config to write cannot: give a config with _base_'
        )


def inherited_config(config: str | os.PathLike, out: str | os.PathLike, changes: dict) -> str:
    """Text of a config that inherits from another one.

    Nothing of the new config's is written where trainings of the other config write: MMEngine puts ``work_dir`` and
    ``resume`` into the configs that trainings leave behind, and names folders after configs.

    Args:
        config: see :func:`se_mm.utils.config.config_path`.
        out: file that the text is for.
        changes: what the config changes.
    """
    path = config_path(config)
    base, own, name = Config.fromfile(path), {}, Path(out).stem
    if name == path.stem:
        name = f'{Path(out).resolve().parent.name}_{name}'
    if base.get('work_dir') or name != Path(out).stem:
        own['work_dir'] = f'./work_dirs/{name}'
    if base.get('resume'):
        own['resume'] = False
    return Config(dict(_base_=_base_of(path, out)) | own | changes).pretty_text


def _base_of(path: Path, out: str | os.PathLike) -> str:
    """How ``out`` names a config: by its package if MMEngine finds it, else from its own folder."""
    path, folder = path.resolve(), Path(out).resolve().parent
    for parent in path.parents:
        if parent.parts[-2:] == ('.mim', 'configs') and is_installed(MODULE2PACKAGE.get(parent.parts[-3], '-')):
            return f'{parent.parts[-3]}::{path.relative_to(parent)}'
    near = len(Path(os.path.commonpath([path, folder])).parts) > 1
    return os.path.relpath(path, folder) if near else str(path)

"""Reading a config the way OpenMMLab's tools do."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, DictAction

from se_mm.checkpoints.files import allow_unsafe_pickle
from se_mm.utils import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that training and evaluation share."""
    parser.add_argument('--work-dir', help='folder of everything that is written [./work_dirs/CONFIG]')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override the config')
    parser.add_argument(
        '--unsafe-pickle',
        action='store_true',
        help='DANGEROUS: let checkpoints run whatever code they hold, if you trust whoever wrote them',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; sets LOCAL_RANK where the launcher has not, as MMEngine expects."""
    args = parser.parse_args()
    if args.unsafe_pickle:
        allow_unsafe_pickle()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


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

"""The command line that training and evaluation share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from mmengine.config import Config, DictAction

from se_mm.utils import InputError
from se_mm.utils.config import config_parts, type_name
from se_mm.weights.pickles import allow_unsafe_pickle


class ConfigOptions(DictAction):
    """MMEngine's KEY=VALUE pairs, and values with dicts, which are written as in a config.

    Raises:
        InputError: naming the pair that cannot be read.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: list[str],
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for pair in values:
            key, equals, value = pair.partition('=')
            if not key or not equals:
                raise InputError(f'{option_string} {pair}: expected KEY=VALUE')
            try:
                if value.startswith(('[', '(', '{', 'dict(')) and ('{' in value or 'dict(' in value):
                    options[key] = Config.fromstring(f'value = {value}', '.py').value
                else:
                    parsed = self._parse_iterable(value)  # which takes all spaces out of plain texts
                    options[key] = value.strip('\'"') if isinstance(parsed, str) else parsed
            except Exception as error:  # a value with dicts is a program
                raise InputError(
                    f'{option_string} {pair}: not a value ({error}); one with dicts is written as in a config, and in '
                    f"""quotes for the shell: "{key}=[dict(type='NAME')]\""""
                ) from error
        setattr(namespace, self.dest, options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that training and evaluation share."""
    parser.add_argument('--work-dir', help='folder of everything that is written [./work_dirs/CONFIG]')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='override the config'
    )
    parser.add_argument(
        '--channels-last',
        action='store_true',
        help='store maps with their channels last: faster convolutions on GPUs with half precision and on CPUs',
    )
    parser.add_argument(
        '--compile', action='store_true', help='compile the model with torch.compile, which takes minutes'
    )
    parser.add_argument(
        '--cache-images', action='store_true', help='keep decoded images in memory, for data sets that fit into it'
    )
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


def apply_arguments(cfg: Config, args: argparse.Namespace, loaders: Sequence[str]) -> None:
    """Put into a config what the shared arguments ask for.

    Args:
        cfg: config; changed.
        args: arguments of :func:`add_arguments`.
        loaders: keys of the data loaders that will be used.

    Raises:
        InputError: images shall be kept by workers that end with every epoch.
    """
    hooks = []
    if args.channels_last:
        hooks.append('se_mm.ChannelsLastHook')
    if args.compile:
        cfg.compile = cfg.get('compile') or True
    if cfg.get('compile'):
        hooks.append('se_mm.EagerOptimizerHook')
    if hooks:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), *(dict(type=name) for name in hooks)]
    if args.cache_images:
        cache_images(cfg, loaders)


def cache_images(cfg: Config, loaders: Sequence[str]) -> None:
    """Let the data sets of some loaders of a config load images by :class:`se_mm.datasets.LoadImageOnce`.

    Raises:
        InputError: workers that load images end with every epoch, and what they keep with them.
    """
    for key in loaders:
        loader = cfg.get(key)
        if not loader:
            continue
        if loader.get('num_workers') and not loader.get('persistent_workers'):
            raise InputError(
                f'--cache-images: the workers of {key} end with every epoch: set {key}.persistent_workers=True or '
                f'{key}.num_workers=0'
            )
        for _, part in config_parts(loader, key):
            if type_name(part) == 'LoadImageFromFile':
                part['type'] = 'se_mm.LoadImageOnce'

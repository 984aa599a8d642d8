"""The command line that training and evaluation share."""

from __future__ import annotations

import argparse
import os

from mmengine.config import Config, DictAction

from se_mm.utils import InputError
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


def apply_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Put into a config what the shared arguments ask for."""
    if args.channels_last:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), dict(type='se_mm.ChannelsLastHook')]

"""The command line that training and evaluation share."""

from __future__ import annotations

import argparse
import os

from mmengine.config import DictAction

from se_mm.weights.pickles import allow_unsafe_pickle


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

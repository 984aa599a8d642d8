"""Train a detector or a classifier from an OpenMMLab config."""

import argparse
import logging
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import all_gather_object, is_main_process
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import se_mm  # noqa: F401  registers the backbones
from se_mm.datasets.skip_broken import replaced, skip_broken
from se_mm.engine import (
    check_config,
    guard,
    init_distributed,
    once_per_machine,
    whole_files,  # noqa: F401  checkpoints are written whole
)
from se_mm.engine.arguments import add_arguments, apply_arguments, parse_arguments
from se_mm.engine.work_dirs import latest_checkpoint, lock_work_dir, written_since_start
from se_mm.utils import InputError, errors_name
from se_mm.utils.config import load_config, type_name
from se_mm.weights import fetch, read_checkpoint

ADDED_HOOKS = ('CheckFiniteHook', 'ExactResumeHook', 'StopOnSignalHook', 'NameHangingHook')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision, on CPUs in bfloat16')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate with the run's batch size"
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or without a value from the latest of the work dir',
    )
    parser.add_argument(
        '--skip-broken',
        type=int,
        default=0,
        metavar='N',
        help='replace up to N broken training images by others; WORK_DIR/broken_images.txt lists them',
    )
    add_arguments(parser)
    return parse_arguments(parser)


def apply_args(cfg: Config, args: argparse.Namespace) -> None:
    if not cfg.get('optim_wrapper'):
        raise InputError(f'{args.config} has no optim_wrapper, which training needs')
    if type_name(cfg.optim_wrapper) == 'AmpOptimWrapper' and get_device() == 'cpu' and not args.amp:
        raise InputError('optim_wrapper.type=AmpOptimWrapper needs a GPU: add --amp, which takes bfloat16 on the CPU')
    if args.amp and torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    elif args.amp:
        cfg.optim_wrapper.type = 'se_mm.CPUAmpOptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):  # of AmpOptimWrapper
            cfg.optim_wrapper.pop(key, None)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise InputError(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size to scale from')
        cfg.auto_scale_lr.enable = True
    hooks = cfg.get('custom_hooks') or []
    given = [type_name(hook) for hook in hooks]
    cfg.custom_hooks = [
        *hooks,
        *(dict(type=f'se_mm.{name}') for name in ADDED_HOOKS if name not in given),
    ]
    if args.skip_broken < 0:
        raise InputError(f'--skip-broken {args.skip_broken}: expected 0 or more images')


def keep_two_checkpoints(cfg: Config) -> None:
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if saving.get('max_keep_ckpts') == 1:
        saving.max_keep_ckpts = 2
        if is_main_process():
            print_log(
                'default_hooks.checkpoint.max_keep_ckpts=1 becomes 2: MMEngine deletes the old checkpoint before it '
                'writes the new one, and an interruption between would lose both',
                logger='current',
                level=logging.WARNING,
            )


def choose_checkpoint(cfg: Config, resume: str | None) -> str | None:
    """Let ``resume`` and ``load_from`` of a config say what training starts from, on all machines alike.

    Args:
        cfg: config; changed.
        resume: the option ``--resume``, ``auto`` for the latest checkpoint.

    Returns:
        The file to start from, if any.
    """
    if written := written_since_start(cfg.work_dir):  # this process replaces one that failed
        cfg.resume, cfg.load_from = True, written
    elif resume and resume != 'auto':
        cfg.resume, cfg.load_from = True, resume
    elif resume or (cfg.get('resume') and not cfg.get('load_from')):
        latest = latest_checkpoint(cfg.work_dir)
        cfg.resume = latest is not None
        cfg.load_from = latest or cfg.get('load_from')  # without a checkpoint, training starts with these weights
    if cfg.get('load_from'):
        cfg.load_from = str(fetch(cfg.load_from))  # MMEngine gets the file that is checked here
    checkpoint = cfg.get('load_from')
    found = {path and Path(path).name for path in all_gather_object(checkpoint)}
    if len(found) > 1:
        raise InputError(
            f'machines would resume from different checkpoints, {" and ".join(sorted(map(str, found)))}: put the '
            'right one where all find it and name it, --resume CHECKPOINT'
        )
    return checkpoint


def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    apply_arguments(cfg, args, loaders=['train_dataloader', 'val_dataloader'])
    apply_args(cfg, args)
    init_distributed(cfg, args.launcher)
    keep_two_checkpoints(cfg)
    checkpoint = choose_checkpoint(cfg, args.resume)
    record = Path(cfg.work_dir, 'broken_images.txt')
    locks = []  # kept until the process ends

    def check() -> None:
        check_config(cfg, training=True, checkpoint=checkpoint, skip_broken=args.skip_broken)
        if is_main_process():
            locks.append(lock_work_dir(cfg.work_dir))
        if not cfg.get('resume'):
            record.unlink(missing_ok=True)  # of an earlier run

    once_per_machine(check)
    if cfg.get('resume') and (cfg.get('randomness') or {}).get('seed') is None:
        # MMEngine takes up a seed that it has drawn too, but after data sets and samplers were built
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=read_checkpoint(checkpoint)['meta'].get('seed'))
    if dataset := (cfg.get('train_dataloader') or {}).get('dataset'):
        cfg.train_dataloader.dataset = ConfigDict(skip_broken(dataset, args.skip_broken, str(record)))
    try:
        with errors_name(cfg.work_dir):
            runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
            runner.train()
    finally:
        if is_main_process() and (names := replaced(record)):
            print_log(
                f'{len(names)} broken images were replaced by others, see {record}: {", ".join(names)}',
                logger='current',
                level=logging.WARNING,
            )


if __name__ == '__main__':
    with guard():
        main()

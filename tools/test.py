"""Evaluate a checkpoint of a detector or a classifier and write metrics.json into the work dir."""

import argparse
from pathlib import Path

from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from rich import print as rich_print
from rich.markup import escape
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.engine import check_config, guard, init_distributed, once_per_machine
from se_mm.engine.arguments import add_arguments, apply_arguments, parse_arguments
from se_mm.engine.drawing import DrawInChild
from se_mm.engine.results import coco_metrics, kinds_to_save, save_predictions, write_metrics
from se_mm.engine.tta import KINDS, merged_views, tested_dataset
from se_mm.engine.work_dirs import lock_work_dir
from se_mm.utils import InputError, errors_name
from se_mm.utils.config import load_config, type_name
from se_mm.weights import fetch


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='write all predictions to a pickle file')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir',
        help='draw predictions into this folder; for detectors the folder is made below WORK_DIR/TIMESTAMP',
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between shown images')
    parser.add_argument('--classwise', action='store_true', help='also AP of each class')
    parser.add_argument(
        '--tta',
        nargs='?',
        choices=KINDS,
        const='tta',
        metavar='flip|ten-crop',
        help="test-time augmentation: the config's, or flipping; ten-crop averages a classifier's softmax scores of "
        'the corners and the centre of an image and of its mirror image; put --tta after config and checkpoint',
    )
    parser.add_argument(
        '--fuse-conv-bn', action='store_true', help='fold batch norms into the convolutions before them: a bit faster'
    )
    add_arguments(parser)
    return parse_arguments(parser)


def add_visualization(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None or 'visualizer' not in cfg:
        raise InputError(
            f'--show and --show-dir: {args.config} needs default_hooks.visualization and a visualizer, set both'
        )
    if args.tta and cfg.default_scope != 'mmdet':
        raise InputError(
            "--tta: mmpretrain's visualization cannot draw augmented images, leave out --show and --show-dir"
        )
    if args.launcher != 'none' and type_name(hook) == 'TrackVisualizationHook':
        raise InputError('--show and --show-dir: tracks are drawn by one process only, leave out --launcher')
    if cfg.default_scope == 'mmdet':
        hook.update(draw=True, show=args.show, wait_time=args.wait_time, test_out_dir=args.show_dir)
    else:
        hook.update(enable=True, interval=1, show=args.show, wait_time=args.wait_time, out_dir=args.show_dir)


def print_table(metrics: dict) -> None:
    per_class = {k: v for k, v in metrics.items() if isinstance(v, dict)}
    table = Table('metric', 'value')
    for name, value in metrics.items():
        if value is None or isinstance(value, int | float):
            table.add_row(name, 'n/a' if value is None else f'{value:.4g}')
    rich_print(table)
    for name, values in per_class.items():
        table = Table('class', name.replace('per_class', 'AP'))
        for cls, value in values.items():
            table.add_row(escape(cls), 'n/a' if value is None else f'{value:.3f}')
        rich_print(table)


def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    apply_arguments(cfg, args, loaders=['test_dataloader'])
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise InputError(f'--out {args.out}: the name has to end in .pkl or .pickle')
    if args.fuse_conv_bn and any(type_name(hook) == 'EMAHook' for hook in cfg.get('custom_hooks') or ()):
        raise InputError(
            f'--fuse-conv-bn: the EMAHook of {args.config} exchanges weights that are folded by then: '
            'leave out --fuse-conv-bn'
        )
    if args.show or args.show_dir:
        add_visualization(cfg, args)
    tta = merged_views(cfg, args.tta) if args.tta else None
    cfg.load_from = args.checkpoint = str(fetch(args.checkpoint))
    views = f'_{args.tta}' if args.tta else ''  # numbers of several views stand in files of their own
    prefix = str(Path(cfg.work_dir, f'predictions{views}'))
    kinds = kinds_to_save(cfg)
    if args.classwise and not kinds:
        raise InputError(f'--classwise: {args.config} has no COCO evaluator')
    init_distributed(cfg, args.launcher)
    locks = []  # kept until the process ends

    def check() -> None:
        check_config(cfg, training=False, checkpoint=args.checkpoint)
        if is_main_process():
            locks.append(lock_work_dir(cfg.work_dir, f'evaluation{views}'))

    once_per_machine(check)
    if tta:
        tested_dataset(cfg).pipeline, merging = tta
        cfg.model = ConfigDict(**merging, module=cfg.model)
    hooks = [DrawInChild(cfg)] if args.show_dir and args.launcher != 'none' else []
    with errors_name(cfg.work_dir):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    save_predictions(runner, kinds, prefix)
    if args.out:
        if cfg.default_scope == 'mmdet':
            from mmdet.evaluation import DumpDetResults as Dump
        else:
            Dump = DumpResults
        runner.test_evaluator.metrics.append(Dump(out_file_path=args.out))
    if args.fuse_conv_bn:
        runner.load_or_resume()
        fuse_conv_bn(runner.model)
    if cfg.get('compile'):  # MMEngine compiles training steps only
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        model.compile(**(cfg.compile if isinstance(cfg.compile, dict) else {}))
    with errors_name(cfg.work_dir):
        metrics = runner.test()
    if is_main_process():
        if kinds:
            metrics = {**metrics, **coco_metrics(runner, kinds, prefix, args.classwise)}
        path = write_metrics(runner, args.checkpoint, metrics, f'metrics{views}.json')
        print_table(metrics)
        print('written:', path)


if __name__ == '__main__':
    with guard():
        main()

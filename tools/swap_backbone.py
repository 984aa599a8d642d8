"""Write the SE twin of a config: a config that inherits from it and changes its backbones, for any OpenMMLab tools.

CONFIG is a file, or a name like mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py of an installed package. Weights are
the published ones of lowest ImageNet error that fit, with the normalisation of images that they expect; teachers stay.
"""

import argparse
import os
from pathlib import Path

from mmengine.config import Config
from rich.console import Console

import se_mm  # noqa: F401  registers the backbones
from se_mm.engine import guard, load_config
from se_mm.engine.swap import twin
from se_mm.models.se_layer import VARIANTS
from se_mm.utils import InputError, written_whole


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME')
    parser.add_argument('out', help='config to write')
    parser.add_argument('--weights', help='checkpoint for init_cfg, or none [chosen of the published ones]')
    parser.add_argument('--variant', choices=VARIANTS, default='standard', help='of SE [standard]')
    return parser.parse_args()


def base_of(config, out):
    """How ``out`` names the config: by its package, or from its own folder."""
    path = Path(config).resolve()
    for parent in path.parents:
        if parent.parts[-2:] == ('.mim', 'configs'):
            return f'{parent.parts[-3]}::{path.relative_to(parent)}'
    folder = Path(out).resolve().parent
    near = len(Path(os.path.commonpath([path, folder])).parts) > 1
    return os.path.relpath(path, folder) if near else str(path)


def read(config):
    if '::' not in config:
        return load_config(config)
    from mmengine.hub import get_config

    try:
        return get_config(config)
    except Exception as error:
        raise InputError(f'config {config} cannot be read: {error}') from error


def main():
    args = parse_args()
    cfg = read(args.config)
    if Path(args.out).exists():
        raise InputError(f'{args.out} is already there: give another name')
    changes, warnings = twin(cfg, args.weights, args.variant)
    base = args.config if '::' in args.config else base_of(args.config, args.out)
    text = Config(dict(_base_=base, **changes)).pretty_text
    with written_whole(args.out) as temporary:
        temporary.write_text(text)
    Console().print(text, markup=False, highlight=False)
    for warning in warnings:
        print('warning:', warning)
    print('written:', args.out)


if __name__ == '__main__':
    with guard():
        main()

"""Write the SE twin of a config: a config that inherits from it and changes its backbones, for any OpenMMLab tools.

CONFIG is a file, or a name like mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py of an installed package. Weights are
the released ones of lowest ImageNet error that fit, with the normalisation of images that they expect; teachers stay.
"""

import argparse
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed
from rich.console import Console

import se_mm  # noqa: F401  registers the backbones
from se_mm.conversion import twin_config
from se_mm.engine import guard
from se_mm.models.se_layer import VARIANTS
from se_mm.utils import InputError, written_whole
from se_mm.utils.config import config_path, load_config


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('out', help='config to write')
    parser.add_argument('--weights', help='checkpoint for init_cfg, or none [chosen of the released ones]')
    parser.add_argument('--variant', choices=VARIANTS, default='standard', help='of SE [standard]')
    return parser.parse_args()


def base_of(path, out):
    """How ``out`` names the config: by its package if MMEngine finds it, else from its own folder."""
    path, folder = path.resolve(), Path(out).resolve().parent
    for parent in path.parents:
        if parent.parts[-2:] == ('.mim', 'configs') and is_installed(MODULE2PACKAGE.get(parent.parts[-3], '-')):
            return f'{parent.parts[-3]}::{path.relative_to(parent)}'
    near = len(Path(os.path.commonpath([path, folder])).parts) > 1
    return os.path.relpath(path, folder) if near else str(path)


def main():
    args = parse_args()
    cfg = load_config(args.config)
    if Path(args.out).exists():
        raise InputError(f'{args.out} is already there: give another name')
    changes, warnings = twin_config(cfg, weights=args.weights, variant=args.variant)
    base = base_of(config_path(args.config), args.out)
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

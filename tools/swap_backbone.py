"""Write the SE twin of a config, for any OpenMMLab tools: a config that inherits from it and changes its backbones, and
the shared heads behind them.

CONFIG is a file, or a name like mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py of an installed package. Weights are
the released ones of lowest ImageNet error that fit, with the normalisation of images that they expect; teachers stay.
"""

import argparse
from pathlib import Path

from rich.console import Console

import se_mm  # noqa: F401  registers the backbones
from se_mm.conversion import check_inheritable, inherited_config, twin_config
from se_mm.engine import guard
from se_mm.models.se_layer import VARIANTS
from se_mm.utils import InputError, written_whole
from se_mm.utils.config import load_config


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('out', help='config to write')
    parser.add_argument('--weights', help='checkpoint for init_cfg, or none [chosen of the released ones]')
    parser.add_argument('--variant', choices=VARIANTS, default='standard', help='of SE [standard]')
    return parser.parse_args()


def main():
    args = parse_args()
    check_inheritable(args.config)
    cfg = load_config(args.config)
    if Path(args.out).exists():
        raise InputError(f'{args.out} is already there: give another name')
    changes, warnings = twin_config(cfg, weights=args.weights, variant=args.variant)
    text = inherited_config(args.config, args.out, changes)
    with written_whole(args.out) as temporary:
        temporary.write_text(text)
    Console().print(text, markup=False, highlight=False)
    for warning in warnings:
        print('warning:', warning)
    print('written:', args.out)


if __name__ == '__main__':
    with guard():
        main()

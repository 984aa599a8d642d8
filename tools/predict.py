"""Show what a network says of images: draw labels or boxes into copies of them.

    python tools/predict.py CONFIG CHECKPOINT photo.jpg -o predictions

The pictures and predictions.json, with all scores and boxes (x1, y1, x2, y2 in pixels), are written into a folder.
"""

import argparse
from pathlib import Path

from mmcv import imread
from rich.console import Console
from rich.progress import track
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.datasets.images import check_images
from se_mm.engine import guard
from se_mm.engine.arguments import ConfigOptions
from se_mm.engine.inference import check_device, picture_of, predictor
from se_mm.utils import InputError, errors_name, write_json
from se_mm.utils.config import load_config
from se_mm.weights import fetch


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('checkpoint', help='checkpoint of the whole model, a file or a name')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image file')
    parser.add_argument('-o', '--out-dir', type=Path, default='predictions', metavar='DIR', help='[%(default)s]')
    parser.add_argument('--score-thr', type=float, default=0.3, help='boxes with a lower score are left out [0.3]')
    parser.add_argument('--device', help='cpu or cuda:0 [the first GPU, if there is one]')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='override the config'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if args.device:
        check_device(args.device)
    pictures = [picture_of(image, cfg, args.out_dir) for image in args.images]
    if twice := [picture for picture in pictures if pictures.count(picture) > 1]:
        raise InputError(f'two pictures would be written to {twice[0]}: choose one of the images')
    images = {Path(image).resolve() for image in args.images}
    if lost := [picture for picture in pictures if picture.resolve() in images]:
        raise InputError(f'{lost[0]} is an image, and its picture would replace it: give another --out-dir')
    checked = check_images(args.images, 'the command line')
    for image in args.images:
        if image not in checked and imread(image) is None:  # of a kind that the check does not know
            raise InputError(f'{image} is not of a kind that OpenCV can read: save it as JPEG or PNG')
    predict = predictor(cfg, str(fetch(args.checkpoint)), args.out_dir, device=args.device, score=args.score_thr)
    console = Console(stderr=True)
    with errors_name(args.out_dir):
        args.out_dir.mkdir(parents=True, exist_ok=True)
        predictions = [predict(image) for image in track(args.images, 'images', console=console, transient=True)]
    write_json(args.out_dir / 'predictions.json', [prediction.content for prediction in predictions])
    table = Table('image', 'prediction', 'picture')
    for image, prediction in zip(args.images, predictions):
        table.add_row(image, prediction.summary, str(prediction.picture))
    Console(width=None if Console().is_terminal else 160).print(table)
    print('written:', args.out_dir / 'predictions.json')


if __name__ == '__main__':
    with guard():
        main()

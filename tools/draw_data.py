"""Draw the built-in data sets: shapes in COCO format, scenes in Places365 layout."""

import argparse
from pathlib import Path

from se_mm.datasets.drawn import write_scenes, write_shapes
from se_mm.engine import guard


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'out', type=Path, nargs='?', default=Path('data'), help='folder of drawn_shapes and drawn_scenes [data]'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the drawings [0]')
    parser.add_argument('--small', action='store_true', help='a tenth of the images, to see that things run')
    args = parser.parse_args()
    part = 10 if args.small else 1
    args.out.mkdir(parents=True, exist_ok=True)
    print(write_shapes(args.out / 'drawn_shapes', args.seed, 400 // part, 100 // part))
    print(write_scenes(args.out / 'drawn_scenes', args.seed, 60 // part, 25 // part))


if __name__ == '__main__':
    with guard():
        main()

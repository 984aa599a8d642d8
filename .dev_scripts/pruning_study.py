"""Prune a trained network by every importance, train it a little further, and compare: numbers of docs/pruning.md.

    python .dev_scripts/pruning_study.py CONFIG CHECKPOINT --data-root DIR --out docs/pruning/NAME.json

Each combination of a share of multiply-adds, an importance and a seed is pruned by tools/prune.py, trained by
tools/train.py and evaluated after its last epoch. The file is written after each combination; those in the file are
not run again.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
from follow import run  # noqa: E402

from se_mm.conversion.importance import IMPORTANCES  # noqa: E402
from se_mm.utils import installed_versions, write_json  # noqa: E402

SCORES = {  # by the names of the log
    'scene_error/top1': lambda error: error,
    'error/top1': lambda error: error,
    'coco/bbox_mAP': lambda ap: 100 * ap,
}
FURTHER = """
_base_ = './pruned.py'
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
optim_wrapper = dict(optimizer=dict(lr={lr}))
param_scheduler = [dict(type='CosineAnnealingLR', T_max={epochs}, by_epoch=True, convert_to_iter_based=True)]
randomness = dict(seed={seed})
"""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--flops', type=float, nargs='+', default=[0.7, 0.5])
    parser.add_argument('--importance', nargs='+', default=list(IMPORTANCES), choices=IMPORTANCES)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--round-to', type=int, default=1)
    parser.add_argument('--epochs', type=int, default=1, help='of the training afterwards [1]')
    parser.add_argument('--lr', type=float, default=0.01, help='its first learning rate, which falls to 0 [0.01]')
    parser.add_argument('--options', nargs='*', default=[], help='further options of train.py, without the --')
    return parser.parse_args()


def one(args, flops, importance, seed):
    """Numbers of one combination."""
    data = ['--cfg-options', f'data_root={Path(args.data_root).resolve()}']
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prune = [
            sys.executable, ROOT / 'tools' / 'prune.py', args.config, args.checkpoint, folder / 'pruned.pth',
            '--flops', flops, '--importance', importance, '--round-to', args.round_to, '--seed', seed, *data,
        ]  # fmt: skip
        run(prune, folder / 'prune.log')
        (folder / 'further.py').write_text(FURTHER.format(epochs=args.epochs, lr=args.lr, seed=seed))
        options = [f'--{option}' for option in args.options]
        train = [sys.executable, ROOT / 'tools' / 'train.py', folder / 'further.py', '--work-dir', folder, *options]
        run([*train, *data], folder / 'train.log')
        numbers = json.loads((folder / 'pruned.json').read_text())
        (scalars,) = folder.glob('*/vis_data/scalars.json')
        lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    trained = next(SCORES[key](line[key]) for line in reversed(lines) for key in SCORES if key in line)
    before = {key: numbers['after'][key] for key in ('parameters', 'backbone_flops')}
    score = next(key for key in numbers['after'] if key in ('top-1 error', 'AP'))
    whole = numbers['before']
    return dict(
        flops=flops, importance=importance, seed=seed, **before, flops_before=whole['backbone_flops'],
        score=score, unpruned=whole[score], pruned=numbers['after'][score], trained=trained,
    )  # fmt: skip


def table_of(runs):
    table = Table('multiply-adds left', 'importance', 'runs', 'pruned', 'trained further')
    for flops, importance in dict.fromkeys((found['flops'], found['importance']) for found in runs):
        mine = [found for found in runs if (found['flops'], found['importance']) == (flops, importance)]
        cells = []
        for key in ('pruned', 'trained'):
            values = [found[key] for found in mine]
            spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.2f}{spread}')
        table.add_row(f'{flops}', importance, str(len(mine)), *cells)
    return table


def main():
    args = parse_args()
    settings = {key: getattr(args, key) for key in ('config', 'checkpoint', 'round_to', 'epochs', 'lr', 'options')}
    content = json.loads(args.out.read_text()) if args.out.exists() else dict(settings, runs=[])
    if differing := [key for key, value in settings.items() if content[key] != value]:
        raise SystemExit(f'error: {args.out} has runs with another {", ".join(differing)}: give another --out')
    content.update(versions=installed_versions())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    keys = {(found['flops'], found['importance'], found['seed']) for found in content['runs']}
    wanted = [(f, i, s) for s in range(args.seeds) for f in args.flops for i in args.importance]
    for key in track([key for key in wanted if key not in keys], console=Console(stderr=True)):
        content['runs'].append(one(args, *key))
        write_json(args.out, content)
    runs = sorted(content['runs'], key=lambda found: (-found['flops'], IMPORTANCES.index(found['importance'])))
    Console(width=120).print(table_of(runs))


if __name__ == '__main__':
    main()

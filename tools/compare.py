"""Compare configs and their evaluations: parameters, GFLOPs, AP or error, and the papers' numbers.

The first config is the baseline that differences are taken from. Measured numbers are read from
metrics.json in the work dirs, where tools/test.py leaves them. Of trackers and of semi-supervised models, parameters
and GFLOPs are those of the detector inside.
"""

import argparse
import json
from itertools import zip_longest
from pathlib import Path

import yaml
from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis import complexity
from se_mm.engine import guard
from se_mm.utils import InputError, write_json, written_whole
from se_mm.utils.config import config_path, load_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
DETECTION = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')
ERROR = ('top1', 'top5')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help='config files or PACKAGE::NAME, the baseline first')
    parser.add_argument('--work-dirs', nargs='+', metavar='DIR', help='one for each config [./work_dirs/CONFIG]')
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='image size for GFLOPs [of the test pipeline]'
    )
    parser.add_argument('--markdown', metavar='FILE', help='also write the table as Markdown')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers as JSON')
    return parser.parse_args()


def paper_numbers(config: str) -> dict:
    """The papers' numbers of one of this project's configs; empty for any other config."""
    path = Path(config).resolve()
    if not path.is_relative_to(CONFIGS):
        return {}
    return yaml.safe_load((CONFIGS / 'results.yml').read_text())['papers'].get(path.stem, {})


def measured_numbers(work_dir: str, config: str) -> dict:
    """AP or error in percent from ``metrics.json``, empty if there is none."""
    path = Path(work_dir) / 'metrics.json'
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        metrics, source = content['metrics'], content['config']
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} is not a file that tools/test.py wrote: {error!r}') from error
    if Path(source).stem != Path(config).stem:
        raise InputError(f'{path} is an evaluation of {source}, not of {config}: give the right --work-dirs')
    numbers = {}
    for name, value in metrics.items():
        if name.removeprefix('bbox_') in DETECTION and value is not None:
            numbers[name.removeprefix('bbox_')] = 100 * value
        elif name.rpartition('/')[2] in ERROR and 'error' in name:
            numbers[name.rpartition('/')[2]] = value
    return numbers


def row_of(config: str, cfg: Config, shape: tuple[int, int] | None) -> dict:
    counts, measured = complexity(cfg, shape), measured_numbers(cfg.work_dir, config)
    return dict(config=config, work_dir=cfg.work_dir, **counts, measured=measured, paper=paper_numbers(config))


def cells(row: dict, baseline: dict, columns: tuple[str, ...]) -> list[str]:
    texts = [Path(row['config']).stem, f'{row["params"] / 1e6:.2f}', f'{row["gflops"]:.2f}']
    for name in columns:
        value, reference = row['measured'].get(name), baseline['measured'].get(name)
        text = 'not run' if not row['measured'] else 'n/a' if value is None else f'{value:.1f}'
        if row is not baseline and value is not None and reference is not None:
            text += f' ({value - reference:+.1f})'
        texts.append(text)
    shown = [
        f'{name} {row["paper"][name]}'
        for name in ('AP', 'AP50', 'top1', 'top5', 'params', 'GFLOPs')
        if name in row['paper']
    ]
    return [*texts, ', '.join(shown) or '-']


def main():
    args = parse_args()
    if args.work_dirs and len(args.work_dirs) != len(args.configs):
        raise InputError(f'--work-dirs has {len(args.work_dirs)} folders for {len(args.configs)} configs')
    paths = [str(config_path(config)) for config in args.configs]
    cfgs = [load_config(path, work_dir=folder) for path, folder in zip_longest(paths, args.work_dirs or ())]
    scopes = {cfg.get('default_scope') for cfg in cfgs}
    if len(scopes) > 1:
        raise InputError('detectors and classifiers have no numbers in common: compare them separately')
    pairs = track(list(zip(paths, cfgs)), 'counting', console=Console(stderr=True), transient=True)
    rows = [row_of(path, cfg, args.shape and tuple(args.shape)) for path, cfg in pairs]
    columns = DETECTION if scopes == {'mmdet'} else ERROR
    unit = '' if scopes == {'mmdet'} else ' error'
    header = ['config', 'params, M', 'GFLOPs', *(f'{name}{unit}' for name in columns), 'paper']
    body = [cells(row, rows[0], columns) for row in rows]

    height, width = rows[0]['shape']
    caption = f'AP and error in %, differences to the first row; GFLOPs (multiply-adds) at {height}x{width}.'
    table = Table(*header, caption=caption)
    for line in body:
        table.add_row(*line)
    print()
    Console(width=None if Console().is_terminal else 160).print(table)
    if args.markdown:
        lines = [header, ['---'] * len(header), *body]
        text = ''.join(f'| {" | ".join(line)} |\n' for line in lines) + f'\n{caption}\n'
        with written_whole(args.markdown) as partial:
            partial.write_text(text)
    if args.json:
        write_json(args.json, rows)


if __name__ == '__main__':
    with guard():
        main()

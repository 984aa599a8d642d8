"""Compare configs and their evaluations: parameters, GFLOPs, AP or error, and the papers' numbers.

The first config is the baseline that differences are taken from. Measured numbers are read from
metrics.json in the work dirs, where tools/test.py leaves them. Several work dirs of a config, runs
with different seeds, give mean and standard deviation, and differences their 95 % interval:

    python tools/compare.py a.py b.py --work-dirs 'work_dirs/a_seed*' 'work_dirs/b_seed*'

Of trackers and of semi-supervised models, parameters and GFLOPs are those of the detector inside.
"""

import argparse
from itertools import zip_longest
from pathlib import Path

import yaml
from mmengine.config import Config
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis import complexity
from se_mm.analysis.comparison import DETECTION, ERROR, differences, measured_values, signed, spread
from se_mm.analysis.runs import config_name, find_work_dirs, read_evaluation
from se_mm.engine import guard
from se_mm.utils import InputError, write_json, written_whole
from se_mm.utils.config import config_path, load_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help='config files or PACKAGE::NAME, the baseline first')
    parser.add_argument(
        '--work-dirs',
        nargs='+',
        metavar='DIR',
        help='one for each config, or one for all: a work dir, a folder of several work dirs, or a quoted pattern '
        '[./work_dirs/CONFIG]',
    )
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


def evaluations_of(config: str, place: str) -> dict[str, dict]:
    """Evaluations of a config by work dir: of the work dir ``place``, or of all inside or of that pattern."""
    folder = Path(place)
    try:
        found = find_work_dirs(place)
    except InputError:
        if any(sign in place for sign in '*?['):
            raise
        return {}  # not run
    if found == [folder]:
        evaluation = read_evaluation(folder)
        if evaluation is not None and Path(evaluation['config']).stem != Path(config).stem:
            raise InputError(
                f'{folder / "metrics.json"} is an evaluation of {evaluation["config"]}, not of {config}: '
                'give the right --work-dirs'
            )
        return {} if evaluation is None else {str(folder): evaluation}
    evaluations = {str(path): read_evaluation(path) for path in found}
    names = {path: config_name(Path(path), evaluation) for path, evaluation in evaluations.items()}
    evaluations = {path: e for path, e in evaluations.items() if names[path] == Path(config).stem}
    if not evaluations:
        others = ', '.join(sorted(set(names.values())))
        raise InputError(f'{place}: none of {len(found)} work dirs is of {config}, they are of {others}')
    missing = [path for path, evaluation in evaluations.items() if evaluation is None]
    if missing:
        raise InputError(f'{missing[0]} has no metrics.json: evaluate it with tools/test.py, or leave it out')
    return evaluations


def row_of(config: str, cfg: Config, evaluations: dict[str, dict], shape: tuple[int, int] | None) -> dict:
    counts, values = complexity(cfg, shape), measured_values(list(evaluations.values()))
    spreads = {name: spread(of_runs) for name, of_runs in values.items()}
    return dict(
        config=config,
        work_dir=cfg.work_dir,
        work_dirs=list(evaluations),
        **counts,
        measured={name: s.mean for name, s in spreads.items()},
        deviation={name: s.deviation for name, s in spreads.items()},
        values=values,
        paper=paper_numbers(config),
    )


def cells(row: dict, columns: tuple[str, ...]) -> list[str]:
    texts = [Path(row['config']).stem, f'{row["params"] / 1e6:.2f}', f'{row["gflops"]:.2f}', str(len(row['work_dirs']))]
    for name in columns:
        values = row['values'].get(name)
        text = str(spread(values)) if values else 'n/a' if row['work_dirs'] else 'not run'
        difference = row['difference'].get(name)
        if difference and not difference.interval:  # others have a table of their own
            text += f' ({signed(difference.value, 1)})'
        texts.append(text)
    shown = [
        f'{name} {row["paper"][name]}'
        for name in ('AP', 'AP50', 'top1', 'top5', 'params', 'GFLOPs')
        if name in row['paper']
    ]
    return [*texts, ', '.join(shown) or '-']


def difference_lines(rows: list[dict], columns: tuple[str, ...]) -> list[list[str]]:
    """One line for each difference whose interval is known."""
    return [
        [Path(row['config']).stem, name, signed(found.value, 1), found.interval, found.verdict]
        for row in rows
        for name, found in row['difference'].items()
        if found.interval and name in columns
    ]


def print_table(header: list[str], lines: list[list[str]], caption: str) -> str:
    """Print a table and return it as Markdown."""
    table = Table(*header, caption=caption)
    for line in lines:
        table.add_row(*map(escape, line))
    Console(width=None if Console().is_terminal else 160).print(table)
    rows = [header, ['---'] * len(header), *lines]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows) + f'\n{caption}\n'


def main():
    args = parse_args()
    places = args.work_dirs or []
    if len(places) == 1:
        places = places * len(args.configs)
    if places and len(places) != len(args.configs):
        raise InputError(
            f'--work-dirs has {len(places)} folders for {len(args.configs)} configs: give one for each, or a pattern '
            'for each, in quotes'
        )
    paths = [str(config_path(config)) for config in args.configs]
    cfgs = [load_config(path, work_dir=place) for path, place in zip_longest(paths, places)]
    scopes = {cfg.get('default_scope') for cfg in cfgs}
    if len(scopes) > 1:
        raise InputError('detectors and classifiers have no numbers in common: compare them separately')
    found = [evaluations_of(path, cfg.work_dir) for path, cfg in zip(paths, cfgs)]
    todo = track(list(zip(paths, cfgs, found)), 'counting', console=Console(stderr=True), transient=True)
    rows = [row_of(*networks, args.shape and tuple(args.shape)) for networks in todo]
    for row in rows:
        row['difference'] = {} if row is rows[0] else differences(row['values'], rows[0]['values'])
    columns = DETECTION if scopes == {'mmdet'} else ERROR
    unit = '' if scopes == {'mmdet'} else ' error'
    header = ['config', 'params, M', 'GFLOPs', 'runs', *(f'{name}{unit}' for name in columns), 'paper']
    height, width = rows[0]['shape']
    caption = f'AP and error in %, differences to the first row; GFLOPs (multiply-adds) at {height}x{width}.'
    data = {path: next(iter(part.values())).get('dataset') for path, part in zip(paths, found) if part}
    for path in [path for path in data if data[path] != next(iter(data.values()))]:
        caption += f' {Path(path).stem} was evaluated on other data than {Path(next(iter(data))).stem}.'
    if any(len(row['work_dirs']) > 1 for row in rows):
        caption += ' Several runs: mean ± standard deviation.'
    print()
    text = print_table(header, [cells(row, columns) for row in rows], caption)
    if lines := difference_lines(rows, columns):
        header = ['config', 'metric', 'difference to the first row', '95 % interval', 'verdict']
        caption = "Welch's t test. An interval that contains 0 is inside the noise between runs."
        text += '\n' + print_table(header, lines, caption)
    if args.markdown:
        with written_whole(args.markdown) as partial:
            partial.write_text(text)
    if args.json:
        for row in rows:
            row['difference'] = {name: found._asdict() for name, found in row['difference'].items()}
        write_json(args.json, rows)


if __name__ == '__main__':
    with guard():
        main()

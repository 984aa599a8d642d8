"""Write the tables of configs/README.md, all metafile.yml and model-index.yml from configs/results.yml.

Epochs, images a step and weights at the start are read from the configs. Parameters and FLOPs are read from
results.yml; --count counts them and writes them there.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import yaml
from mmengine.config import Config
from rich.progress import track

from se_mm.analysis import complexity
from se_mm.utils.config import load_config, plain_twin

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
RESULTS = CONFIGS / 'results.yml'
README = CONFIGS / 'README.md'
NOTE = f'# Written by .dev_scripts/{Path(__file__).name} from configs/results.yml.\n'
METRICS = {'top1': 'top-1 error', 'top5': 'top-5 error'}
BLOCK = re.compile(r'(<!-- (table|run): (\S+) -->\n).*?(<!-- end -->)', re.DOTALL)


@dataclass
class Row:
    """A config and its numbers, which are strings with the digits that results.yml has."""

    path: Path  # relative to configs/
    cfg: Config
    counted: dict
    paper: dict

    def weights(self) -> str:
        init_cfg = self.cfg.model.backbone.get('init_cfg')
        if not isinstance(init_cfg, dict) or init_cfg.get('type') != 'Pretrained':
            return ''
        own = re.fullmatch(r'work_dirs/(.+)/epoch_\d+\.pth', init_cfg['checkpoint'])
        if not own:
            return f'`{init_cfg["checkpoint"]}`'
        (config,) = CONFIGS.rglob(f'{own[1]}.py')
        return f'[{own[1]}]({config.relative_to(CONFIGS)})'

    def gflops(self) -> str:
        gflops = int(self.counted['flops']) / 1e9
        return f'{gflops:.{2 if gflops >= 1 else 3}f}'


# A column without any entry is left out of a table.
COLUMNS = {
    'config': lambda row: f'[{row.path.stem}]({row.path})',
    'weights at the start': Row.weights,
    'epochs': lambda row: str(row.cfg.train_cfg.max_epochs),
    'images a step': lambda row: str(row.cfg.auto_scale_lr.base_batch_size),
    'test image': lambda row: 'x'.join(row.counted['shape']),
    'params, M': lambda row: f'{int(row.counted["params"]) / 1e6:.2f}',
    'GFLOPs': Row.gflops,
    'paper: params, M': lambda row: row.paper.get('params', ''),
    'paper: GFLOPs': lambda row: row.paper.get('GFLOPs', ''),
    'paper: AP': lambda row: row.paper.get('AP', ''),
    'paper: AP50': lambda row: row.paper.get('AP50', ''),
    'paper: top-1 error': lambda row: row.paper.get('top1', ''),
    'paper: top-5 error': lambda row: row.paper.get('top5', ''),
    'place in the paper': lambda row: ' '.join(row.paper.get('source', '').split()[-2:]),
}


def config_files() -> list[Path]:
    """All configs that can be run, a plain one before its SE twins, r50 before r101."""

    def natural(name: str) -> list:
        return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name.replace('_', ' '))]

    def order(path: Path) -> tuple:
        plain = plain_twin(path)
        return path.parent, natural(plain.stem), path != plain, natural(path.stem)

    return sorted((path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts), key=order)


def read_results() -> dict:
    """results.yml with all numbers as strings, since 24.80 read as a number loses its last digit."""
    return yaml.load(RESULTS.read_text(), Loader=yaml.BaseLoader)


def count(names: list[str]) -> None:
    """Count the named configs, or all, and write the numbers into results.yml."""
    files = {path.stem: path for path in config_files()}
    if unknown := set(names) - files.keys():
        sys.exit(f'there are no configs {", ".join(sorted(unknown))}')
    counted = {name: numbers for name, numbers in (read_results()['counted'] or {}).items() if name in files}
    for name in track(names or list(files), 'counting'):
        numbers = complexity(load_config(files[name]))
        height, width = numbers['shape']
        counted[name] = dict(params=numbers['params'], flops=round(numbers['gflops'] * 1e9), shape=[height, width])
    lines = (
        f'  {name}: {{params: {n["params"]}, flops: {n["flops"]}, shape: [{", ".join(map(str, n["shape"]))}]}}\n'
        for name, n in sorted(counted.items())
    )
    written_by_hand = RESULTS.read_text().partition('\ncounted:')[0]
    RESULTS.write_text(f'{written_by_hand}\ncounted:\n{"".join(lines)}')


def rows_of(results: dict) -> list[Row]:
    files = config_files()
    if missing := [path.stem for path in files if path.stem not in results['counted']]:
        sys.exit(f'configs/results.yml lacks parameters and FLOPs: run {sys.argv[0]} --count {" ".join(missing)}')
    return [
        Row(
            path=path.relative_to(CONFIGS),
            cfg=Config.fromfile(path),
            counted=results['counted'][path.stem],
            paper=results['papers'].get(path.stem, {}),
        )
        for path in files
    ]


def markdown(rows: list[dict[str, str]]) -> str:
    """A table of rows, which map titles of columns to cells. Empty columns are left out."""
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    lines = [titles, ['---'] * len(titles), *([row[title] for title in titles] for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def spread(values: list[str]) -> str:
    """One value as it is; of several the mean, the standard deviation and all of them."""
    if len(values) == 1:
        return values[0]
    numbers, digits = [float(value) for value in values], len(values[0].partition('.')[2])
    return f'{mean(numbers):.{digits}f} ± {stdev(numbers):.{digits}f} ({", ".join(values)})'


def readme(results: dict, rows: list[Row]) -> str:
    """configs/README.md with its tables written anew. A block names the files of its rows, or its run."""

    def block(found: re.Match) -> str:
        start, kind, what, end = found.groups()
        if kind == 'run':
            table = [
                {'': name, **{METRICS.get(key, key): spread(values) for key, values in numbers.items()}}
                for name, numbers in results['runs'][what].items()
            ]
        else:
            named = {path.relative_to(CONFIGS) for path in CONFIGS.glob(what)}
            table = [{title: cell(row) for title, cell in COLUMNS.items()} for row in rows if row.path in named]
            if not table:
                sys.exit(f'configs/README.md has a table of {what}, but there are no such configs')
        return f'{start}\n{markdown(table)}\n{end}'

    return BLOCK.sub(block, README.read_text())


def metafile(results: dict, rows: list[Row]) -> str:
    """The metafile.yml of a folder, in the form that mim and mmengine.hub read."""
    models = []
    for row in rows:
        name, folder = row.path.stem, row.path.parent.name
        collection = 'SE variations' if folder == 'variations' else 'SENet'
        data = next((data for end, data in results['training_data'].items() if name.endswith(f'_{end}')), None)
        if data is None:
            sys.exit(f'{name} ends with none of training_data in configs/results.yml')
        metadata = {
            'Training Data': data,
            'Epochs': row.cfg.train_cfg.max_epochs,
            'Batch Size': row.cfg.auto_scale_lr.base_batch_size,
            'Parameters': int(row.counted['params']),
            'FLOPs': int(row.counted['flops']),
        }
        models.append(
            {
                'Name': name,
                'In Collection': 'Plain twins' if plain_twin(name).name == name else collection,
                'Config': f'configs/{row.path}',
                'Metadata': metadata,
            }
        )
    collections = {'Collections': results['collections']} if rows[0].path.parent == Path('.') else {}
    return NOTE + yaml.safe_dump({**collections, 'Models': models}, sort_keys=False)


def outputs() -> dict[Path, str]:
    """Every file that is written, with its text."""
    results = read_results()
    rows = rows_of(results)
    folders: dict[Path, list[Row]] = {}
    for row in rows:
        folders.setdefault(CONFIGS / row.path.parent / 'metafile.yml', []).append(row)
    index = {'Import': [str(path.relative_to(ROOT)) for path in folders]}
    return {
        README: readme(results, rows),
        ROOT / 'model-index.yml': NOTE + yaml.safe_dump(index),
        **{path: metafile(results, models) for path, models in folders.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--count', nargs='*', metavar='NAME', help='count parameters and FLOPs of these configs, or of all, first'
    )
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if a file is out of date')
    args = parser.parse_args()
    if args.count is not None:
        count(args.count)
    stale = {path: text for path, text in outputs().items() if not path.is_file() or path.read_text() != text}
    for path, text in stale.items():
        print(f'{path.relative_to(ROOT)} {"is out of date" if args.check else "written"}')
        if not args.check:
            path.write_text(text)
    sys.exit(bool(stale and args.check))


if __name__ == '__main__':
    main()

"""Write a page that shows runs side by side: numbers, learning curves, validation images, commands.

The page is one HTML file that needs no network. It takes the work dirs of detectors, of classifiers
or of both. Runs of one config are taken together: mean and spread. The first detector and the first
classifier are the baselines that differences are taken from.
"""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis.page import compare_runs, group_runs, render
from se_mm.analysis.runs import find_work_dirs, read_run
from se_mm.engine import guard
from se_mm.utils import write_json, written_whole
from se_mm.utils.config import plain_twin


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work dir, folder of several, or pattern')
    parser.add_argument('-o', '--out', default='report.html', metavar='FILE', help='the page [report.html]')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers as JSON')
    return parser.parse_args()


def read_runs(patterns):
    """The runs of all work dirs, each once; in a folder of several, plain networks come first."""
    folders = {}
    for pattern in patterns:
        folders |= {folder.resolve(): folder for folder in find_work_dirs(pattern)}
    runs = [read_run(folder) for folder in folders.values()]
    return sorted(runs, key=lambda run: plain_twin(run.name).name != run.name) if len(patterns) == 1 else runs


def main():
    args = parse_args()
    runs = read_runs(args.work_dirs)
    columns = TextColumn('{task.description}'), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task('reading', total=len(group_runs(runs)) + 2)
        kinds = compare_runs(runs, lambda text: progress.update(task, description=text, advance=1))
        progress.update(task, description='drawing')
        page = render(kinds, shlex.join(['python', *sys.argv]))
    with written_whole(args.out) as partial:
        partial.write_text(page)
    if args.json:
        write_json(args.json, [network.numbers() for kind in kinds for network in kind.networks])
    for remark in (remark for kind in kinds for remark in kind.remarks):
        print(f'note: {remark}')
    print(f'page: {Path(args.out).resolve()}')


if __name__ == '__main__':
    with guard():
        main()

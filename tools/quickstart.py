"""Train and evaluate SE and plain networks on drawn data with the distributed launcher, and compare.

Run by quickstart.sh. What is finished is kept: an interrupted run continues where it was.
Everything is done by other programs; importing nothing heavy, this one shows what happens at once.
"""

import argparse
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from follow import ROOT, TOOLS, run, train_and_test
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

# Config and the seconds that training and test took on 2 CPU cores, for the estimate.
RUNS = dict(
    faster_rcnn_r18_shapes=(110, 12),
    faster_rcnn_se_r18_shapes=(120, 12),
    r18_scenes=(40, 10),
    se_r18_scenes=(45, 10),
)
DATA, REPORT = 'drawing the data', 'report page'
OTHER_SECONDS = {DATA: 8, REPORT: 20}
COMPARISONS = dict(detection=list(RUNS)[:2], scenes=list(RUNS)[2:])


def config_path(name: str) -> Path:
    return ROOT / 'configs' / 'quickstart' / f'{name}.py'


def remaining(total: float, done: float, elapsed: float) -> timedelta:
    """Time left: by the seconds of RUNS at first, more and more by what the finished part took here."""
    return timedelta(seconds=round((total - done) * (elapsed + 120) / (done + 120)))


class RemainingColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f'{remaining(task.total, task.completed, task.elapsed)} left')


def count_gpus() -> int:
    code = 'import torch; print(torch.cuda.device_count())'
    return int(subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs' / 'quickstart', help='results [%(default)s]'
    )
    work = parser.parse_args().work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f'Training and evaluating {len(RUNS)} networks on drawn data. Results and logs: {work}')
    todo = {DATA: OTHER_SECONDS[DATA]}
    todo |= {name: sum(seconds) for name, seconds in RUNS.items() if not (work / name / 'metrics.json').is_file()}
    todo[REPORT] = OTHER_SECONDS[REPORT]
    page = work / 'report.html'

    columns = TextColumn('{task.description:30}'), BarColumn(), TimeElapsedColumn(), RemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        total, done, processes = sum(todo.values()), 0, 2
        bar = progress.add_task('', total=total)
        for i, (name, seconds) in enumerate(todo.items(), 1):
            progress.update(bar, description=f'{i}/{len(todo)} {name}', completed=done)
            if not console.is_terminal:
                left = remaining(total, done, progress.tasks[bar].elapsed)
                print(f'{i}/{len(todo)} {name} (about {left} left)', flush=True)
            if name == DATA:
                run([sys.executable, TOOLS / 'draw_data.py', ROOT / 'data'], work / 'data.log')
                gpus = count_gpus()
                processes = min(gpus, 2) or 2
                console.print(f'{processes} GPUs, nccl' if gpus else f'{processes} CPU processes, gloo')
            elif name == REPORT:
                command = [sys.executable, TOOLS / 'report.py', *(work / run_name for run_name in RUNS), '-o', page]
                run(command, work / 'report.log')
            else:
                train_and_test(
                    config_path(name),
                    work / name,
                    processes=processes,
                    share=RUNS[name][0] / seconds,
                    advance=lambda part, start=done, whole=seconds: progress.update(
                        bar, completed=start + part * whole
                    ),
                )
            done += seconds
        progress.update(bar, description='done', completed=done)

    for kind, names in COMPARISONS.items():
        command = [sys.executable, TOOLS / 'compare.py', *(config_path(name) for name in names)]
        command += ['--work-dirs', *(work / name for name in names)]
        command += ['--markdown', work / f'{kind}.md', '--json', work / f'{kind}.json']
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT)
    console.print('\nThis was a demonstration that everything works here, not evidence: the networks, the data and')
    console.print('the training are far too small to tell which network is better. configs/README.md has real runs.')
    console.print(f'\nCurves, images and numbers: {page}')


if __name__ == '__main__':
    main()

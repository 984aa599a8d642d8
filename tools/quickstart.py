"""Train and evaluate SE and plain networks on drawn data with the distributed launcher, and compare.

Run by quickstart.sh. What is finished is kept: an interrupted run continues where it was.
Everything is done by other programs; importing nothing heavy, this one shows what happens at once.
"""

import argparse
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
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
EPOCHS = re.compile(r'max_epochs=(\d+)')
TRAINED = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].*eta')
TESTED = re.compile(r'Epoch\(test\)\s+\[\s*(\d+)/(\d+)\]')


def config_path(name: str) -> Path:
    return ROOT / 'configs' / 'quickstart' / f'{name}.py'


def remaining(total: float, done: float, elapsed: float) -> timedelta:
    """Time left: by the seconds of RUNS at first, more and more by what the finished part took here."""
    return timedelta(seconds=round((total - done) * (elapsed + 120) / (done + 120)))


class RemainingColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f'{remaining(task.total, task.completed, task.elapsed)} left')


def run(command: list, log: Path, advance=lambda part: None) -> None:
    """Run a command, its output into ``log``, reporting the finished part of a training or test."""
    epochs = None
    with log.open('w') as file:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        try:
            for line in process.stdout:
                file.write(line)
                epochs = epochs or (int(found[1]) if (found := EPOCHS.search(line)) else None)
                if epochs and (found := TRAINED.search(line)):
                    epoch, step, steps = (int(group) for group in found.groups())
                    advance((epoch - 1 + step / steps) / epochs)
                elif found := TESTED.search(line):
                    advance(int(found[1]) / int(found[2]))
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
        sys.exit(f'error: {" ".join(str(part) for part in command)} failed, see {log}:\n{tail}')


def train_and_test(name: str, work: Path, processes: int, advance) -> None:
    """Train, from the latest checkpoint if there is one, and evaluate the checkpoint that was saved."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    train, test = RUNS[name]
    share = train / (train + test)
    command = [TOOLS / 'dist_train.sh', config_path(name), processes, '--work-dir', folder, '--resume']
    run(command, folder / 'train.log', lambda part: advance(share * part))
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    command = [TOOLS / 'dist_test.sh', config_path(name), checkpoint, processes, '--work-dir', folder]
    run(command, folder / 'test.log', lambda part: advance(share + (1 - share) * part))


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
                    name,
                    work,
                    processes,
                    lambda part, start=done, whole=seconds: progress.update(bar, completed=start + part * whole),
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

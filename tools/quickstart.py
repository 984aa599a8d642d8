"""Train and evaluate SE and plain networks on drawn data with the distributed launcher, and compare.

Run by quickstart.sh. What is finished is kept: an interrupted run continues where it was.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from se_mm.datasets.drawn import write_scenes, write_shapes
from se_mm.engine import guard
from se_mm.utils import InputError

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
# Config and the seconds that training and test took on 2 CPU cores, for the estimate.
RUNS = dict(
    faster_rcnn_r18_shapes=(120, 15),
    faster_rcnn_se_r18_shapes=(130, 15),
    r18_scenes=(40, 10),
    se_r18_scenes=(45, 10),
)
COMPARISONS = dict(detection=list(RUNS)[:2], scenes=list(RUNS)[2:])
TRAINED = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].*eta')
EPOCHS = re.compile(r'max_epochs=(\d+)')


def config_path(name: str) -> Path:
    return ROOT / 'configs' / 'quickstart' / f'{name}.py'


def run(command: list, log: Path, advance) -> None:
    """Run a command, its output into ``log``, reporting the finished part of a training."""
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
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
        raise InputError(f'{" ".join(str(part) for part in command)} failed, see {log}:\n{tail}')


def train_and_test(name: str, work: Path, processes: int, report) -> None:
    """Train, from the latest checkpoint if there is one, and evaluate the checkpoint that was saved."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    train, test = RUNS[name]
    share = train / (train + test)
    command = [TOOLS / 'dist_train.sh', config_path(name), processes, '--work-dir', folder, '--resume']
    run(command, folder / 'train.log', lambda part: report(share * part))
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    command = [TOOLS / 'dist_test.sh', config_path(name), checkpoint, processes, '--work-dir', folder]
    run(command, folder / 'test.log', lambda part: None)
    report(1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs' / 'quickstart', help='results [%(default)s]'
    )
    work = parser.parse_args().work_dir.resolve()
    gpus = torch.cuda.device_count()
    processes = min(gpus, 2) or 2
    where = f'{processes} GPUs, nccl' if gpus else f'{processes} CPU processes, gloo'
    print(f'Training and evaluating {len(RUNS)} networks on drawn data: {where}. Results and logs: {work}')
    write_shapes(ROOT / 'data' / 'drawn_shapes')
    write_scenes(ROOT / 'data' / 'drawn_scenes')

    todo = {name: seconds for name, seconds in RUNS.items() if not (work / name / 'metrics.json').is_file()}
    total = sum(sum(seconds) for seconds in todo.values())
    columns = TextColumn('{task.description:34}'), BarColumn(), TimeElapsedColumn(), 'left', TimeRemainingColumn()
    console = Console()
    # The estimate looks back over everything, since test runs report no progress of their own.
    with Progress(*columns, console=console, speed_estimate_period=3600, disable=not console.is_terminal) as progress:
        task, done = progress.add_task('', total=total), 0
        for i, (name, seconds) in enumerate(todo.items(), 1):
            progress.update(task, description=f'{i}/{len(todo)} {name}')
            if not console.is_terminal:
                print(f'{i}/{len(todo)} {name} (about {(total - done) / 60:.0f} min left on 2 cores)', flush=True)
            start, whole = done, sum(seconds)
            report = lambda part, start=start, whole=whole: progress.update(task, completed=start + part * whole)  # noqa: E731
            train_and_test(name, work, processes, report)
            done += whole

    for kind, names in COMPARISONS.items():
        command = [sys.executable, TOOLS / 'compare.py', *(config_path(name) for name in names)]
        command += ['--work-dirs', *(work / name for name in names)]
        command += ['--markdown', work / f'{kind}.md', '--json', work / f'{kind}.json']
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT)
    print('\nThis was a demonstration that everything works here, not evidence: the networks, the data and')
    print('the training are far too small to tell which network is better. configs/README.md has real runs.')


if __name__ == '__main__':
    with guard():
        main()

"""Train and evaluate all runs of a study, from nothing or from where it was interrupted.

    python tools/study.py configs/studies/cifar10.yml

A study file names configs, seeds and options; they are fixed before the first run. Runs that are
finished are skipped, a run that was interrupted (Ctrl-C, SIGTERM, power cut) goes on from its latest
checkpoint. As a run ends, its numbers, its curve and where they come from are written to
RESULTS/STUDY/CONFIG_seedN.json.
"""

import argparse
import itertools
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue

import torch
from follow import BASE, end_all, train_and_test
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import se_mm  # noqa: F401  registers the backbones
from se_mm.engine import guard
from se_mm.engine.studies import StudyRun, read_study, remember_start, write_result
from se_mm.utils import InputError

TEST_SHARE = 0.01  # of the time of a run, for the estimate


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='study file, e.g. configs/studies/cifar10.yml')
    parser.add_argument('--data-root', metavar='DIR', help="folder of the data set [the configs']")
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=BASE / 'work_dirs' / 'studies',
        metavar='DIR',
        help='logs and checkpoints [%(default)s]',
    )
    parser.add_argument(
        '--results',
        type=Path,
        default=BASE / 'docs' / 'evidence',
        metavar='DIR',
        help='one JSON file a run [%(default)s]',
    )
    parser.add_argument('--first', type=int, metavar='N', help='only the first N runs of the study')
    parser.add_argument(
        '--jobs', type=int, default=1, help='runs at the same time, each on its own GPUs while there are enough [1]'
    )
    return parser.parse_args()


class Follower:
    """Shows how far the runs of a study are: bars in a terminal, lines elsewhere."""

    def __init__(self, progress: Progress, runs: int) -> None:
        self.progress, self.whole = progress, progress.add_task('all', total=runs)

    def start(self, name: str) -> Callable[[float], None]:
        """Show a run; its finished part is for the function that is returned."""
        bar = self.progress.add_task(name, total=1.0)

        def advance(part: float) -> None:
            self.progress.update(self.whole, advance=part - self.progress.tasks[bar].completed)
            self.progress.update(bar, completed=part, visible=part < 1)

        self.say(f'{name}: starts')
        return advance

    def say(self, text: str) -> None:
        task = self.progress.tasks[self.whole]
        left = '' if task.time_remaining is None else f', about {task.time_remaining / 3600:.1f} h left'
        self.progress.console.print(f'[{task.completed:.1f} of {task.total:g}] {text}{left}', markup=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]


def gpu_shares(jobs: int, processes: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each job: a GPU for each process, the first GPU again after the last.

    Without GPUs, the values are empty.
    """
    count = torch.cuda.device_count()
    gpus = (os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(count)))).split(',')
    if not gpus[0].startswith('MIG-'):  # torch counts one part of a GPU only
        gpus = gpus[:count]
    turns = itertools.cycle(gpus or [''])
    return [','.join(itertools.islice(turns, max(1, min(processes, len(gpus))))) for _ in range(jobs)]


def finish(run: StudyRun, folder: Path, args: argparse.Namespace, follower: Follower, gpus: SimpleQueue) -> None:
    """Bring a run to its end, on one of the shares of GPUs, and store what came out."""
    advance = follower.start(run.name)
    remember_start(run, folder)
    options, processes = run.arguments(), run.study.processes
    if args.data_root:
        options.append(f'data_root={Path(args.data_root).resolve()}')
    threads = max(1, (os.cpu_count() or 1) // (args.jobs * processes))
    share = gpus.get()
    try:
        train_and_test(
            run.config,
            folder,
            processes=processes if processes > 1 else 0,
            share=1 - TEST_SHARE,
            advance=advance,
            options=options,
            train_options=run.train_options,
            CUDA_VISIBLE_DEVICES=share,
            OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', str(threads)),
            PORT=str(free_port()),  # of the distributed launcher: others run beside it
        )
    finally:
        gpus.put(share)
    path = write_result(run, folder, args.results)
    advance(1.0)
    follower.say(f'{run.name}: {path}')


def main():
    args = parse_args()
    for option in ('jobs', 'first'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f'--{option} {value}: choose a whole number from 1')
    study = read_study(args.study)
    runs, work = study.runs()[: args.first], args.work_dir.resolve() / study.name
    todo = [(run, work / run.name) for run in runs if not run.is_finished(args.results)]
    for run, folder in todo:
        run.starts(folder)  # what is wrong there is said before long work
    console = Console(highlight=False, soft_wrap=True)
    console.print(f'{study.name}: {len(runs)} runs, {len(runs) - len(todo)} finished. Logs: {work}')
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    gpus = SimpleQueue()
    for share in gpu_shares(args.jobs, study.processes):
        gpus.put(share)
    columns = TextColumn('{task.description:30}'), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    bars = Progress(*columns, console=console, speed_estimate_period=7200, disable=not console.is_terminal)
    with bars as progress, ThreadPoolExecutor(args.jobs) as pool:
        follower = Follower(progress, len(todo))
        futures = [pool.submit(finish, run, folder, args, follower, gpus) for run, folder in todo]
        try:
            pending = futures
            while pending:  # short waits: a signal that another thread has received is seen between two
                done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()


if __name__ == '__main__':
    with guard():
        main()

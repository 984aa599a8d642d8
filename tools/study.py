"""Train and evaluate all runs of a study, from nothing or from where it was interrupted.

    python tools/study.py configs/studies/cifar10.yml

A study file names configs, seeds and options; they are fixed before the first run. Runs that are
finished are skipped, a run that was interrupted (Ctrl-C, SIGTERM, power cut) goes on from its latest
checkpoint. As a run ends, its numbers, its curve and where they come from are written to
RESULTS/STUDY/CONFIG_seedN.json.
"""

import argparse
import os
import signal
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from follow import ROOT, end_all, train_and_test
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import se_mm  # noqa: F401  registers the backbones
from se_mm.engine import guard
from se_mm.engine.studies import Run, read_study, remember_start, write_result

TEST_SHARE = 0.01  # of the time of a run, for the estimate


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='study file, e.g. configs/studies/cifar10.yml')
    parser.add_argument('--data-root', metavar='DIR', help="folder of the data set [the configs']")
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=ROOT / 'work_dirs' / 'studies',
        metavar='DIR',
        help='logs and checkpoints [%(default)s]',
    )
    parser.add_argument(
        '--results',
        type=Path,
        default=ROOT / 'docs' / 'evidence',
        metavar='DIR',
        help='one JSON file a run [%(default)s]',
    )
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time [1]')
    return parser.parse_args()


def finish(run: Run, args: argparse.Namespace, threads: int, progress: Progress, whole: int) -> None:
    """Bring a run to its end and store what came out."""
    folder = args.work_dir.resolve() / run.study.name / run.name
    bar = progress.add_task(run.name, total=1.0)

    def advance(part: float) -> None:
        progress.update(whole, advance=part - progress.tasks[bar].completed)
        progress.update(bar, completed=part)

    report(progress, f'{run.name}: starts', whole)
    remember_start(run, folder)
    options = run.arguments()
    if args.data_root:
        options.append(f'data_root={Path(args.data_root).resolve()}')
    train_and_test(
        run.config,
        folder,
        processes=run.study.processes if run.study.processes > 1 else 0,
        share=1 - TEST_SHARE,
        advance=advance,
        options=options,
        OMP_NUM_THREADS=str(threads),
    )
    path = write_result(run, folder, args.results)
    advance(1.0)
    progress.update(bar, visible=False)
    report(progress, f'{run.name}: {path}', whole)


def report(progress: Progress, text: str, whole: int) -> None:
    task = progress.tasks[whole]
    left = '' if task.time_remaining is None else f', about {task.time_remaining / 3600:.1f} h left'
    progress.console.print(f'[{task.completed:.2f}/{task.total:g}] {text}{left}', markup=False)


def main():
    args = parse_args()
    study = read_study(args.study)
    runs = study.runs()
    todo = [run for run in runs if not run.is_finished(args.results)]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f'{study.name}: {len(runs)} runs, {len(runs) - len(todo)} finished. Logs: {args.work_dir}')
    threads = max(1, (os.cpu_count() or 1) // (args.jobs * study.processes))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    columns = TextColumn('{task.description:30}'), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with (
        Progress(*columns, console=console, speed_estimate_period=7200, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        whole = progress.add_task('all', total=len(todo))
        futures = [pool.submit(finish, run, args, threads, progress, whole) for run in todo]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()


if __name__ == '__main__':
    with guard():
        main()

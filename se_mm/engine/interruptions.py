"""A training that is told to end, or whose launcher has died, ends after the step and can go on later."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from se_mm.registry import HOOKS
from se_mm.utils import InputError, written_whole

from .exact_resume import ExactResumeHook

CHECKPOINT = 'interrupted.pth'
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: what was asked for can be tried again
SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name)]


@HOOKS.register_module()
class StopOnSignalHook(Hook):
    """SIGTERM or SIGUSR1 end a training after the step: a checkpoint is written, and the exit code is 75.

    SIGTERM comes from launchers and from machines that shut down, SIGUSR1 from Slurm before a time limit
    (``--signal=USR1@120``). One process that gets the signal stops all.

    Args:
        interval: number of steps between two looks at the signals of other processes. Each look waits for the GPU.

    Raises:
        InputError: ``interval`` is below 1.
        SystemExit: with code 75, after the checkpoint was written.
    """

    priority = 'LOWEST'  # after the hook that saves checkpoints

    def __init__(self, interval: int = 10) -> None:
        if interval < 1:
            raise InputError(f'StopOnSignalHook: interval={interval} has to be 1 or more')
        self.interval = interval
        self.received = 0
        self.before: dict = {}

    def before_train(self, runner: Runner) -> None:
        """Take over the signals, and let workers of data loaders live while the step is finished."""
        for loop in (runner.train_loop, runner.val_loop):
            loader = getattr(loop, 'dataloader', None)
            if isinstance(loader, DataLoader):
                loader.worker_init_fn = OutliveSignal(loader.worker_init_fn)
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        signal.signal(number, self.before[number] or signal.SIG_DFL)  # the next one does what it always does

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Stop if a process has received a signal."""
        number = self.received
        if runner.world_size > 1:
            if not self.every_n_train_iters(runner, self.interval):
                return
            received = torch.tensor(number)
            all_reduce(received, 'max')
            number = int(received)
        if number:
            self._stop(runner, signal.Signals(number).name)

    def _stop(self, runner: Runner, name: str) -> None:
        for hook in runner.hooks:
            if isinstance(hook, ExactResumeHook):
                hook.collect(runner)
        runner.save_checkpoint(runner.work_dir, CHECKPOINT, by_epoch=False)
        path = Path(runner.work_dir, CHECKPOINT)
        if is_main_process():
            with written_whole(Path(runner.work_dir, 'last_checkpoint')) as partial:
                partial.write_text(str(path))
        barrier()  # a launcher ends all processes with the first
        print_log(
            f'{name}: training stopped after iteration {runner.iter + 1}, {path} is written, --resume goes on',
            logger='current',
        )
        sys.exit(REQUEUE)

    def after_train(self, runner: Runner) -> None:
        """Give the signals back; the training's end makes the checkpoint needless."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if is_main_process():
            Path(runner.work_dir, CHECKPOINT).unlink(missing_ok=True)


class OutliveSignal:
    """Keeps the signals of a training from a worker of a data loader: torchrun sends SIGTERM to a group of processes.

    The training itself still ends its workers, each by a SIGTERM of its own.

    Args:
        then: ``worker_init_fn`` of the data loader.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        if hasattr(os, 'setpgrp'):  # not on Windows
            os.setpgrp()
        for number in SIGNALS:
            if number != signal.SIGTERM:
                signal.signal(number, signal.SIG_IGN)
        sys.excepthook = report_unless_left_alone
        if self.then is not None:
            self.then(worker)


def report_unless_left_alone(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Print an exception of a worker's thread, unless the training has ended while the thread handed over a batch."""
    if not isinstance(error, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def end_with_launcher(patience: float = 60) -> None:
    """End this process if the launcher that has started it dies, be it by SIGKILL, which no launcher can pass on.

    Args:
        patience: seconds between SIGTERM, see :class:`StopOnSignalHook`, and the end.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

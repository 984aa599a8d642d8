"""A process that hangs while the others wait for it is named, and the training ends."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from datetime import timedelta
from typing import NamedTuple

from mmengine.dist import all_gather_object, broadcast_object_list
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.distributed import DistError, TCPStore

from se_mm.registry import HOOKS
from se_mm.utils import InputError

from .launch import print_error

ANSWER = 20  # seconds that the store may take


class Progress(NamedTuple):
    """How far a process is: what is compared, what it does, for how many seconds, and on which machine."""

    place: list[int]
    doing: str
    seconds: float
    host: str


# The phases of an iteration, in their order; a validation comes before the iteration.
VALIDATION, METRICS, BEFORE, GRADIENTS, AFTER = range(5)


@HOOKS.register_module()
class NameHangingHook(Hook):
    """End a distributed training in which one process is behind the others and does not move, and name the process.

    Without this hook, the others wait until the backend gives up, after 10 minutes with nccl and 30 minutes with gloo,
    and none says for whom. Processes that hang at the same place, as all in their gradients, are left to the backend.

    Args:
        timeout: seconds; None for nine tenths of ``env_cfg.dist_cfg.timeout`` or, where the config has none, 540.

    Raises:
        InputError: ``timeout`` is not above 0.
    """

    priority = 'VERY_HIGH'

    def __init__(self, timeout: float | None = None) -> None:
        if timeout is not None and timeout <= 0:
            raise InputError(f'NameHangingHook: timeout={timeout} has to be above 0 seconds')
        self.timeout = timeout
        self.ended = threading.Event()
        self.seen: dict[int, tuple[str, float]] = {}  # what was read last of another process, and since when
        self._move(0, VALIDATION, 0, 'starting')

    def _move(self, iteration: int, phase: int, step: int, doing: str) -> None:
        self.state = [iteration, phase, step], doing, time.monotonic()

    def before_train(self, runner: Runner) -> None:
        """Start to watch, in a thread of its own."""
        if runner.world_size == 1:
            return
        if self.timeout is None:
            given = (runner.cfg.get('env_cfg') or {}).get('dist_cfg', {}).get('timeout')
            self.timeout = 0.9 * given if given else 540.0
        store = _shared_store(runner)
        if store is None:
            return
        if not runner.cfg.get('compile'):  # hooks of modules would break the compiled graph
            runner.model.register_forward_hook(lambda *_: self._after_forward(runner))
        arguments = store, runner.rank, runner.world_size
        threading.Thread(target=self._watch, args=arguments, daemon=True).start()

    def _watch(self, store: TCPStore, rank: int, processes: int) -> None:
        while not self.ended.wait(min(10.0, self.timeout / 5)):
            place, doing, since = self.state
            own = Progress(place, doing, time.monotonic() - since, socket.gethostname())
            try:
                store.set(str(rank), json.dumps(own))
                message = self._fault(self._others(store, rank, processes), rank, own) if self._waits(own) else ''
            except (DistError, RuntimeError) as error:
                if self.ended.is_set() or own.seconds < self.timeout:
                    continue
                message = (
                    f'process {rank} has waited for {own.seconds:.0f} s, and process 0 does not answer '
                    f'({str(error).splitlines()[0]}): its machine or the network between may be down'
                )
            if message:
                print_error(InputError(message))
                os._exit(1)  # the main thread waits

    def _waits(self, own: Progress) -> bool:
        return own.seconds > self.timeout / 2  # from then on the other processes are looked at

    def _others(self, store: TCPStore, rank: int, processes: int) -> dict[int, Progress]:
        found = {}
        for other in (number for number in range(processes) if number != rank):
            text, now = store.get(str(other)).decode(), time.monotonic()
            if self.seen.get(other, ('', 0.0))[0] != text:
                self.seen[other] = text, now
            progress = Progress(*json.loads(text))
            # A process that is frozen tells nothing new.
            found[other] = progress._replace(seconds=progress.seconds + now - self.seen[other][1])
        return found

    def _fault(self, others: dict[int, Progress], rank: int, own: Progress) -> str:
        """What to say if this process waits for another one that does not move, '' if it does not."""
        if own.seconds <= self.timeout:
            return ''
        behind = {n: other for n, other in others.items() if other.place < own.place and other.seconds > self.timeout}
        return '. '.join(
            f'process {n} (on {other.host}) hangs: for {other.seconds:.0f} s it has been {other.doing}. Process {rank} '
            f'waits for it, {own.doing}'
            for n, other in behind.items()
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._move(runner.iter, BEFORE, 0, f'before the gradients of iteration {runner.iter + 1}')

    def _after_forward(self, runner: Runner) -> None:
        if runner.model.training:
            self._move(runner.iter, GRADIENTS, 0, f'in the gradients of iteration {runner.iter + 1}')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        self._move(runner.iter, AFTER, 0, f'after the step of iteration {runner.iter + 1}, or loading the next images')

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._move(runner.iter, VALIDATION, batch_idx, f'in iteration {batch_idx + 1} of a validation')

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None) -> None:
        if batch_idx + 1 == len(runner.val_dataloader):  # which may differ between processes
            self._move(runner.iter, METRICS, 0, 'after the images of a validation')

    def after_train(self, runner: Runner) -> None:
        """Stop to watch."""
        self.ended.set()


def _shared_store(runner: Runner) -> TCPStore | None:
    """A store of all processes, which process 0 serves; None, with a warning, if a process does not reach it."""
    address, patience, store, why = os.environ['MASTER_ADDR'], timedelta(seconds=ANSWER), None, ''
    try:
        if runner.rank == 0:
            store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=patience)
    except (DistError, RuntimeError) as error:
        why = str(error)
    port = [store.port if store else 0]
    broadcast_object_list(port)
    try:
        if port[0] and runner.rank:
            store = TCPStore(address, port[0], is_master=False, wait_for_workers=False, timeout=patience)
    except (DistError, RuntimeError) as error:
        why = str(error)
    if all(all_gather_object(store is not None)):
        return store
    reason = f' ({why.splitlines()[0]})' if why else ''
    print_log(
        f'processes that hang will not be named: port {port[0]} of {address} is not reached by all{reason}',
        logger='current',
        level=logging.WARNING,
    )
    return None

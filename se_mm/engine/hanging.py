"""A process that hangs while the others wait for it is named, and the training ends."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from datetime import timedelta
from typing import NamedTuple

from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed import DistError, TCPStore

from se_mm.registry import HOOKS
from se_mm.utils import InputError

from .launch import print_error

ANSWER = 20  # seconds that the store may take


class Progress(NamedTuple):
    """How far a process is: what is compared, what it does, and for how many seconds."""

    place: list[int]
    doing: str
    seconds: float
    host: str


@HOOKS.register_module()
class NameHangingHook(Hook):
    """End a distributed training in which one process is behind the others and does not move, and name the process.

    Without this hook, the others wait until the backend gives up, after 10 minutes with nccl and 30 minutes with gloo,
    and none says for whom. Processes that hang at the same place, as all in their gradients, are left to the backend.

    Args:
        timeout: seconds.

    Raises:
        InputError: ``timeout`` is not above 0.
    """

    priority = 'VERY_HIGH'

    def __init__(self, timeout: float = 540) -> None:
        if timeout <= 0:
            raise InputError(f'NameHangingHook: timeout={timeout} has to be above 0 seconds')
        self.timeout = timeout
        self.ended = threading.Event()
        self._move(0, 0, 0, 'starting')

    def _move(self, iteration: int, phase: int, step: int, doing: str) -> None:
        self.state = [iteration, phase, step], doing, time.monotonic()

    @staticmethod
    def _gradients(runner: Runner) -> str:
        return f'computing the gradients of iteration {runner.iter + 1}'

    def before_train(self, runner: Runner) -> None:
        """Start to watch, in a thread of its own."""
        if runner.world_size > 1:
            store = _shared_store(runner)
            if not runner.cfg.get('compile'):  # hooks of modules would break the compiled graph
                runner.model.register_forward_hook(lambda *_: self._move(runner.iter, 2, 0, self._gradients(runner)))
            watch = threading.Thread(target=self._watch, args=(store, runner.rank, runner.world_size), daemon=True)
            watch.start()

    def _watch(self, store: TCPStore, rank: int, processes: int) -> None:
        while not self.ended.wait(min(10.0, self.timeout / 5)):
            try:
                place, doing, since = self.state
                own = Progress(place, doing, time.monotonic() - since, socket.gethostname())
                store.set(str(rank), json.dumps([*own[:3], own.host, time.time()]))
                if own.seconds > self.timeout and (message := self._fault(store, rank, processes, own)):
                    print_error(InputError(message))
                    os._exit(1)  # the main thread waits
            except (DistError, RuntimeError) as error:
                if self.ended.is_set() or own.seconds < self.timeout:
                    continue
                print_error(
                    InputError(
                        f'process {rank} has waited for {own.seconds:.0f} s, and process 0 does not answer '
                        f'({str(error).splitlines()[0]}): its machine or the network between may be down'
                    )
                )
                os._exit(1)

    def _fault(self, store: TCPStore, rank: int, processes: int, own: Progress) -> str | None:
        """What to say if this process waits for another one that does not move."""
        others = {}
        for other in range(processes):
            *state, at = json.loads(store.get(str(other)))
            others[other] = Progress(*state)._replace(seconds=state[2] + max(0.0, time.time() - at))
        behind = {other: p for other, p in others.items() if p.place < own.place and p.seconds > self.timeout}
        if not behind:
            return None
        return '. '.join(
            f'process {other} (on {p.host}) hangs: it has been for {p.seconds:.0f} s {p.doing}; process {rank} '
            f'waits for it, {own.doing}'
            for other, p in behind.items()
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._move(runner.iter, 1, 0, f'before the gradients of iteration {runner.iter + 1}')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        self._move(runner.iter, 3, 0, f'after the step of iteration {runner.iter + 1}, or loading the next images')

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._move(runner.iter, 4, batch_idx, f'validating, in iteration {batch_idx + 1}')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._move(runner.iter, 5, 0, 'after the validation, or loading the next images')

    def after_train(self, runner: Runner) -> None:
        """Stop to watch."""
        self.ended.set()


def _shared_store(runner: Runner) -> TCPStore:
    """A store of all processes, which process 0 serves."""
    address, patience = os.environ['MASTER_ADDR'], timedelta(seconds=ANSWER)
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=patience) if runner.rank == 0 else None
    port = [store.port if store else 0]
    broadcast_object_list(port)
    return store or TCPStore(address, port[0], is_master=False, wait_for_workers=False, timeout=patience)

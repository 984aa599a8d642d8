"""Kill trainings at bad moments, let them go on, and compare their weights with those of an uninterrupted training.

Two processes train a small classifier on drawn images, with augmentation, stochastic depth and batch norm statistics of
their own. One process gets SIGKILL, the other one SIGTERM, as from a launcher. tools/train.py --resume goes on. The
exit code is 1 if a weight differs in the last bit.
"""

import argparse
import builtins
import os
import re
import runpy
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmpretrain.utils import register_all_modules
from rich.console import Console
from rich.progress import track
from rich.table import Table

from se_mm.datasets.drawn import write_scenes
from se_mm.engine.whole_files import WholeFileBackend
from se_mm.registry import HOOKS
from se_mm.utils import write_json, written_whole
from se_mm.weights import read_checkpoint

OPEN = open
ROOT = Path(__file__).resolve().parents[1]
PROCESSES, STEPS, EPOCHS = 2, 5, 2
LAST = f'iter_{EPOCHS * STEPS}.pth'
# The processes to kill, one after the other. Only process 0 writes.
MOMENTS = {
    'before the first step': (1,),
    'in a step': (0, 1),
    'in a validation': (1,),
    'when half of a checkpoint is written': (0,),
    'between a checkpoint and last_checkpoint': (0,),
}
CONFIG = f"""
_base_ = {str(ROOT / 'configs' / 'quickstart' / 'se_r18_scenes.py')!r}
model = dict(backbone=dict(stem_channels=8, base_channels=8, se_ratio=4, drop_path_rate=0.3), head=dict(in_channels=64))
train_dataloader = dict(batch_size=4, num_batch_per_epoch={STEPS})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=2))
train_cfg = dict(max_epochs={EPOCHS}, val_interval=1)
"""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class DieHook(Hook):
    """Ends the process in the middle of something."""

    priority = 'VERY_LOW'

    def __init__(self, moment: str) -> None:
        self.moment = moment
        if moment.startswith('when half'):
            WholeFileBackend.put = self._put_half
        elif moment.startswith('between'):
            builtins.open = self._open

    def before_train(self, runner) -> None:
        if self.moment == 'before the first step':
            die()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.moment == 'in a step' and runner.iter == STEPS + 2:
            die()

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.moment == 'in a validation' and runner.epoch == 1:
            die()

    @staticmethod
    def _put_half(backend, content, path) -> None:
        with written_whole(path) as partial:
            partial.write_bytes(content if 'iter_4' not in str(path) else content[: len(content) // 2])
            if 'iter_4' in str(path):
                die()

    @staticmethod
    def _open(path, mode='r', *arguments, **options):
        if str(path).endswith('last_checkpoint') and 'w' in mode and Path(path).with_name('iter_4.pth').is_file():
            die()
        return OPEN(path, mode, *arguments, **options)


def start(rank: int, port: int, folder: Path, arguments: list) -> int:
    """A process that trains; returns its number. Forked, since all has been imported."""
    if number := os.fork():
        return number
    environment = dict(RANK=rank, WORLD_SIZE=PROCESSES, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=PROCESSES, MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_ADDR='127.0.0.1')
    with (folder / f'process{rank}.log').open('a') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    code = 1
    try:
        sys.argv = ['train.py', *map(str, arguments)]
        runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(folder: Path, options: list, dying: tuple[int, str] | None = None) -> dict[int, int]:
    """Train in ``folder``; returns the exit codes of the processes, below 0 for a signal. One may be told to die."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    common = [folder.parent / 'small.py', '--work-dir', folder / 'work', '--launcher', 'pytorch', '--resume']
    running = {}
    for rank in range(PROCESSES):
        arguments = [*common, '--cfg-options', *options]
        if dying and dying[0] == rank:
            hooks = f"[dict(type='SyncBuffersHook'),dict(type='se_mm.DieHook',moment='{dying[1]}')]"
            arguments.append(f'custom_hooks={hooks}')
        running[start(rank, port, folder, arguments)] = rank
    codes = {}
    while running:
        number, status = os.wait()
        rank = running.pop(number)
        codes[rank] = os.waitstatus_to_exitcode(status)
        if codes[rank] and len(codes) == 1:
            for other in running:
                os.kill(other, signal.SIGTERM)
    return codes


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / 'work' / LAST)['state_dict']


def attempt(folder: Path, options: list, moment: str, rank: int, whole: dict[str, torch.Tensor]) -> dict:
    """Kill and go on; returns what came of it."""
    killed = train(folder, options, (rank, moment))[rank] == -signal.SIGKILL
    (folder / 'process0.log').write_text('')
    begin = time.monotonic()
    ended = not any(train(folder, options).values())
    log = (folder / 'process0.log').read_text()
    resumed = re.search(r'resumed epoch: \d+, iter: (\d+)', log)
    actual = weights(folder) if ended else {}
    different = sum(name not in actual or not torch.equal(tensor, actual[name]) for name, tensor in whole.items())
    return dict(
        killed=moment,
        process=rank,
        was_killed=killed,
        resumed_after_step=int(resumed[1]) if resumed else 0,
        ended=ended,
        different_tensors=different,
        tensors=len(whole),
        seconds=round(time.monotonic() - begin, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', metavar='FILE', help='also write what came out as JSON')
    args = parser.parse_args()
    torch.set_num_threads(1)
    register_all_modules()  # once for all processes, which are forked
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        (place / 'small.py').write_text(CONFIG)
        options = [f'data_root={write_scenes(place / "scenes", train=6, val=2)}']
        if any(train(place / 'whole', options).values()):
            sys.exit(f'the training without interruption failed:\n{(place / "whole" / "process0.log").read_text()}')
        whole = weights(place / 'whole')
        todo = [(moment, rank) for moment, ranks in MOMENTS.items() for rank in ranks]
        found = [
            attempt(place / f'{number}', options, moment, rank, whole)
            for number, (moment, rank) in enumerate(
                track(todo, 'killing', console=Console(stderr=True), transient=True)
            )
        ]
    table = Table('killed', 'process', 'resumed after step', 'tensors that differ')
    for row in found:
        differs = f'{row["different_tensors"]} of {row["tensors"]}' if row['ended'] else 'it did not end'
        table.add_row(row['killed'], str(row['process']), str(row['resumed_after_step']), differs)
    Console().print(table)
    if args.json:
        write_json(args.json, found)
    sys.exit(not all(row['was_killed'] and row['ended'] and not row['different_tensors'] for row in found))


if __name__ == '__main__':
    main()

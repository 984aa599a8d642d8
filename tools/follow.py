"""For programs that train and test with the other tools: run a tool, follow how far it is, end it.

Importing nothing heavy, such a program shows what happens at once.
"""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
BASE = ROOT if (ROOT / 'setup.py').is_file() else Path.cwd()  # an installed package keeps its own folder clean
EPOCHS = re.compile(r'max_epochs=(\d+)')
TRAINED = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].*eta')
TESTED = re.compile(r'Epoch\(test\)\s+\[\s*(\d+)/(\d+)\]')
_running: set[subprocess.Popen] = set()
_ended = threading.Event()


def run(command: Iterable, log: Path, advance: Callable[[float], None] = lambda part: None, **environment: str) -> None:
    """Run a command, its output into ``log``, reporting the finished part of a training or test.

    Raises:
        SystemExit: the command failed; with the end of its output.
    """
    if _ended.is_set():
        sys.exit(1)
    epochs, command = None, [str(part) for part in command]
    with log.open('w', buffering=1) as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=BASE,
            env={**os.environ, **environment},
        )
        _running.add(process)
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
            _running.discard(process)
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
        sys.exit(f'error: {" ".join(command)} failed, see {log}:\n{tail}')


def end_all() -> None:
    """End the commands that :func:`run` has running in other threads, and let none start."""
    _ended.set()
    for process in list(_running):
        process.terminate()


def train_and_test(
    config: Path,
    folder: Path,
    *,
    processes: int,
    share: float,
    advance: Callable[[float], None],
    options: Iterable = (),
    train_options: Iterable = (),
    **environment: str,
) -> None:
    """Train, from the latest checkpoint if there is one, and evaluate the checkpoint that was saved last.

    Args:
        config: config file.
        folder: the work dir; gets ``train.log`` and ``test.log``.
        processes: of the distributed launcher; 0 for one process without it.
        share: the part of the time that training takes.
        advance: is called with the finished part of both.
        options: of train.py and test.py.
        train_options: of train.py alone.
        **environment: variables for both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ['--work-dir', folder, *options]

    def command(tool: str, *arguments: object) -> list:
        if processes:
            return [TOOLS / f'dist_{tool}.sh', *arguments, processes, *options]
        return [sys.executable, TOOLS / f'{tool}.py', *arguments, *options]

    if not processes:
        environment['PYTHONPATH'] = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    train = [*command('train', config), *train_options, '--resume']
    run(train, folder / 'train.log', lambda part: advance(share * part), **environment)
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    test = command('test', config, checkpoint)
    run(test, folder / 'test.log', lambda part: advance(share + (1 - share) * part), **environment)

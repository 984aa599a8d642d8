"""Programs run by a process that has imported what they need and forks: a start takes a second instead of seven."""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

IMPORTED = (
    'se_mm.mmcv_ext',  # before mmdet: operators, where mmcv has none
    'se_mm',
    'pandas',
    'matplotlib.pyplot',
    'mmdet.apis',
    'mmdet.engine',
    'mmdet.evaluation',
    'mmdet.visualization',
    'mmpretrain.apis',
    'mmpretrain.engine',
    'mmpretrain.evaluation',
    'mmpretrain.visualization',
    'se_mm.analysis',
    'se_mm.engine',
)


def as_program(command: list[str], folder: Path, output: Path) -> None:
    """Become the program ``command``, a Python file and arguments."""
    multiprocessing.set_start_method('fork', force=True)  # that of programs on Linux
    os.chdir(folder)
    with output.open('wb') as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    try:
        runpy.run_path(command[0], run_name='__main__')
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def run_forked(command: list[str], folder: Path, timeout: float) -> tuple[int, str]:
    """Run a program to its end.

    Args:
        command: a Python file and arguments.
        folder: to run it in.
        timeout: in seconds.

    Returns:
        its exit code, and its standard output and standard error in one text.

    Raises:
        TimeoutError: it takes longer.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(IMPORTED))
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / 'output.txt'
        process = context.Process(target=as_program, args=(command, folder, output))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f'{command} takes longer than {timeout} s: {output.read_text()}')
        return process.exitcode, output.read_text()

"""Work dirs: one training and one evaluation at a time, and the latest checkpoint."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.logging import print_log

from se_mm.utils import InputError
from se_mm.weights import read_checkpoint

from .resume_checks import check_parts

STARTED = 'SE_MM_STARTED'  # variable with the time at which tools/launch.py began, in seconds


def lock_work_dir(work_dir: str | os.PathLike, purpose: str = 'training') -> FileLock:
    """Refuse a second training, or evaluation, in a work dir: each would overwrite what the other one writes.

    Args:
        work_dir: is made if it is not there.
        purpose: 'training' or 'evaluation'; those of different purposes may use a work dir together.

    Returns:
        The lock. The system releases the lock when the process ends, in whatever way.

    Raises:
        InputError: another process does so there, or nothing can be written there.
    """
    lock = FileLock(Path(work_dir, f'.{purpose}.lock'))
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f'work_dir {work_dir}: another {purpose} writes there: wait until it ends, or give another folder, '
            '--work-dir FOLDER'
        ) from error
    except OSError as error:
        raise InputError(
            f'work_dir {work_dir} cannot be written ({error.strerror}): give another folder, --work-dir FOLDER'
        ) from error
    return lock


def latest_checkpoint(work_dir: str | os.PathLike, since: float = 0.0) -> str | None:
    """The checkpoint to resume from: the one that ``last_checkpoint`` names, else the newest that can be resumed.

    A file that cannot be resumed is named in a warning. The best checkpoints are left out: they are older.

    Args:
        work_dir: the folder that a training wrote into.
        since: time, in seconds since 1970; older files are left out.

    Returns:
        The file; None if the folder has no checkpoint.

    Raises:
        InputError: the folder has checkpoints, and none can be resumed.
    """
    folder = Path(work_dir)
    files = [file for file in folder.glob('*.pth') if not file.name.startswith('best_')]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    pointer = folder / 'last_checkpoint'
    if pointer.is_file():
        named = Path(pointer.read_text(errors='replace').strip())
        # The folder may have been moved since.
        files.sort(key=lambda file: file.name != named.name)
        if named.name and named.is_file() and named.parent.resolve() != folder.resolve():
            files.insert(0, named)
    files = [file for file in files if file.stat().st_mtime >= since]
    for file in files:
        try:
            check_parts(str(file), read_checkpoint(file))
        except InputError as error:
            _warn(f'{error}. Trying another checkpoint of {work_dir}')
        else:
            return str(file)
    if files:
        raise InputError(
            f'none of the {len(files)} checkpoints in {work_dir} can be resumed: name another file, --resume FILE, or '
            'give another folder, --work-dir FOLDER'
        )
    _warn(f'work_dir {work_dir} has no checkpoint: training starts at its beginning')
    return None


def written_since_start(work_dir: str | os.PathLike) -> str | None:
    """The latest checkpoint that processes before this one have written; None if a launcher has restarted none.

    Raises:
        InputError: see :func:`latest_checkpoint`.
    """
    if STARTED not in os.environ or os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0':
        return None
    return latest_checkpoint(work_dir, since=float(os.environ[STARTED]))


def _warn(message: str) -> None:
    """Log a warning, in the first process of a run."""
    if os.environ.get('RANK', '0') == '0':
        print_log(message, logger='current', level=logging.WARNING)

"""Run a Python program where the folder ``disk`` is a disk of 200 KiB that is full but for a file.

    python full_disk.py ROOM PROGRAM ARGUMENTS...

ROOM is the number of bytes that are left. What the program leaves is copied to ``left``. The exit code is the
program's, or 77 where a process cannot have a disk of its own.
"""

import ctypes
import os
import runpy
import shutil
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
NOT_ALLOWED = 77


def mount(folder: Path) -> bool:
    """Whether a small disk could be mounted, for this process alone."""
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        return False
    try:
        Path('/proc/self/setgroups').write_text('deny')
        Path('/proc/self/uid_map').write_text(f'0 {user} 1')
        Path('/proc/self/gid_map').write_text(f'0 {group} 1')
    except PermissionError:
        return False
    return libc.mount(b'none', bytes(folder), b'tmpfs', 0, b'size=200k') == 0


def fill(path: Path) -> None:
    with path.open('wb', buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def main() -> None:
    disk, room = Path('disk'), int(sys.argv[1])
    if not mount(disk):
        sys.exit(NOT_ALLOWED)
    (disk / 'older').write_text('older\n')
    (disk / 'room').write_bytes(bytes(room))
    fill(disk / 'filler')
    (disk / 'room').unlink()
    program = os.fork()
    if not program:
        sys.argv = sys.argv[2:]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name='__main__')
        return
    _, status = os.waitpid(program, 0)
    (disk / 'filler').unlink()
    shutil.copytree(disk, 'left')
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == '__main__':
    main()

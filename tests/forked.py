"""Programs forked from a process that has imported what they need: a start takes a fraction of a second, not six.

A folder with a program named python stands first on the PATH of the tests' programs. That program asks a server to
fork and to run a file, waits for the end, and passes signals on. What launchers start is started in the same way.
Calls of python without a file (-c, -m) go to the interpreter.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    'se_mm.mmcv_ext',  # before mmdet: operators, where mmcv has none
    'se_mm',
    'matplotlib.pyplot',
    'mmdet.apis',
    'mmdet.engine',
    'mmdet.evaluation',
    'mmdet.visualization',
    'mmpretrain.apis',
    'mmpretrain.engine',
    'mmpretrain.evaluation',
    'mmpretrain.visualization',
    'torch.distributed.run',
    'se_mm.analysis',
    'se_mm.engine',
)

PARSED = ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', 'mmpretrain::resnet/resnet18_8xb32_in1k.py')

# Its second line is one for the shell and a text for Python: the interpreter's path may have spaces. Python starts
# without the site and its imports, which is quick.
CLIENT = """#!/bin/sh
"exec" "{python}" "-IS" "$0" "$@"
import json, os, signal, socket, sys
arguments = sys.argv[1:]
while arguments[:1] in (['-u'], ['-B']):
    arguments.pop(0)
if not arguments or not arguments[0].endswith('.py'):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
request = json.dumps([arguments, os.getcwd(), os.getpgid(0), dict(os.environ)]).encode()
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [len(request).to_bytes(8, 'big')], [0, 1, 2])
server.sendall(request)
replies = server.makefile()
program = int(replies.readline())
def forward(number, frame):
    try:
        os.kill(program, number)
    except ProcessLookupError:
        pass
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, forward)
status = int(replies.readline() or 1)
if os.WIFSIGNALED(status):
    signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.WEXITSTATUS(status))
"""


def start_server() -> Path:
    """Start the server, which ends with this process.

    Returns:
        The folder with the program named python.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    address = Path(folder.name, 'socket')
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(64)
    program = Path(folder.name, 'python')
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(stat.S_IRWXU)
    command = [sys.executable, __file__, str(listener.fileno()), str(program)]
    server = subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.PIPE)
    atexit.register(server.kill)
    return Path(folder.name)


def serve(listener: socket.socket) -> list[str]:
    """Fork for every request until the tests end; returns in the child alone, the file to run and its arguments."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
    programs = {}  # of clients
    while True:
        for key, _ in selector.select():
            if key.fileobj == sys.stdin.fileno():  # the tests have ended
                os._exit(0)
            if key.fileobj is listener:
                client, _ = listener.accept()
                client.settimeout(10)
                try:
                    length, files, _, _ = socket.recv_fds(client, 8, 3)
                    request = json.loads(client.makefile('rb').read(int.from_bytes(length, 'big')))
                except (OSError, ValueError):  # the client has died
                    client.close()
                    continue
                program = os.fork()
                if not program:
                    selector.close()
                    listener.close()
                    return become(*request, files)
                for file in files:
                    os.close(file)
                programs[client] = program
                selector.register(client, selectors.EVENT_READ, None)
                selector.register(os.pidfd_open(program), selectors.EVENT_READ, client)
                try:
                    client.sendall(f'{program}\n'.encode())
                except OSError:  # the client has died
                    os.kill(program, signal.SIGKILL)
            elif key.data is None:  # the client has died, or has been answered since
                if key.fileobj in programs:
                    selector.unregister(key.fileobj)
                    os.kill(programs[key.fileobj], signal.SIGKILL)
            else:
                client = key.data
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                _, status = os.waitpid(programs.pop(client), 0)
                try:
                    selector.unregister(client)
                    client.sendall(f'{status}\n'.encode())
                except (KeyError, OSError):  # the client has died
                    pass
                client.close()


def become(arguments: list[str], folder: str, group: int, environment: dict[str, str], files: list[int]) -> list[str]:
    """Take over what a client has."""
    try:
        os.setpgid(0, group)
    except OSError:  # of another session
        pass
    os.chdir(folder)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(Path(arguments[0]).parent.absolute()), *filter(None, os.getenv('PYTHONPATH', '').split(':'))]
    return arguments


def run_file(arguments: list[str]) -> NoReturn:
    """Run a file and end the process. At its own end the interpreter would take two seconds to free everything."""
    code = 0
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name='__main__')
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == '__main__':
    import yaml_once  # noqa: F401

    del sys.path[0]  # the folder of this file
    for module in IMPORTED:
        importlib.import_module(module)
    from mmengine.hub import get_config

    for config in PARSED:
        get_config(config)  # so that no program has to parse the metafiles of its package
    sys.stdout.flush()  # what imports have printed, or else every program would print the text again
    gc.freeze()  # or else every program would copy what the collection touches
    sys.executable = sys.argv[2]  # for the programs that programs start
    run_file(serve(socket.socket(fileno=int(sys.argv[1]))))

"""torchrun with the mistakes that users make checked first, and its traceback left out.

Takes torchrun's arguments; `dist_train.sh` and `dist_test.sh` call it.
"""

import os
import signal
import socket
import sys
import time

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from se_mm.engine import guard
from se_mm.engine.interruptions import REQUEUE
from se_mm.engine.launch import check_gpus
from se_mm.engine.work_dirs import STARTED
from se_mm.utils import InputError


def check_port(address: str, port: int) -> None:
    if not 0 < port < 65536:
        raise InputError(f'PORT={port}: a port is a number from 1 to 65535')
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', port))
        except OSError as error:
            raise InputError(
                f'port {port} of {address} cannot be used ({error.strerror}): set another, PORT={port + 1}'
            ) from error


def main():
    args = parse_args(sys.argv[1:])
    processes = int(args.nproc_per_node)
    check_gpus(processes)
    # torchrun's default is one thread each, which is right where GPUs compute.
    threads = 1 if torch.cuda.is_available() else max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))
    unset = [name for name in ('MASTER_ADDR', 'NODE_RANK') if name not in os.environ]
    if args.nnodes != '1' and unset:
        raise InputError(
            f'NNODES={args.nnodes} machines need the same MASTER_ADDR and each its NODE_RANK: set {" and ".join(unset)}'
        )
    if args.node_rank == 0:
        check_port(args.master_addr, args.master_port)
    if args.max_restarts:
        if args.nnodes != '1':
            raise InputError(
                f'RESTARTS={args.max_restarts}: processes are started again on one machine only, not on NNODES'
            )
        # A store that outlives the processes would have the addresses of those that failed.
        os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
        args.rdzv_backend, args.rdzv_endpoint = 'c10d', f'{args.master_addr}:{args.master_port}'
        args.local_addr = args.master_addr
    os.environ[STARTED] = str(time.time())
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', '120')  # seconds, to write a checkpoint
    # torchrun passes SIGTERM on to the processes, and not SIGUSR1.
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    try:
        run(args)
    except SignalException as error:
        sys.exit(130 if error.sigval == signal.SIGINT else REQUEUE)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == REQUEUE:
            sys.exit(REQUEUE)
        sys.exit(f'process {rank} ended with exit code {failure.exitcode}; its own messages are above')


if __name__ == '__main__':
    with guard():
        main()

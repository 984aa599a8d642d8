"""torchrun with the mistakes that users make checked first, and its traceback left out.

Takes torchrun's arguments; `dist_train.sh` and `dist_test.sh` call it.
"""

import socket
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from se_mm.engine import guard
from se_mm.engine.launch import check_gpus
from se_mm.utils import InputError


def check_port(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', port))
        except OSError as error:
            raise InputError(f'port {port} of {address} is in use ({error.strerror}): set another, PORT={port + 1}')


def main():
    args = parse_args(sys.argv[1:])
    if args.nproc_per_node.isdigit():
        check_gpus(int(args.nproc_per_node))
    if args.node_rank == 0:
        check_port(args.master_addr, args.master_port)
    try:
        run(args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(f'process {rank} ended with exit code {failure.exitcode}; its own messages are above')


if __name__ == '__main__':
    with guard():
        main()

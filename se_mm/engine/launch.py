"""Starting distributed runs, with GPUs or without."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from urllib.error import URLError

import psutil
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import all_gather_object, init_dist, is_distributed
from mmengine.registry import MODEL_WRAPPERS
from torch.nn.parallel import DistributedDataParallel

from se_mm.utils import InputError
from se_mm.weights.pickles import refuse_code

from .interruptions import end_with_launcher

# Where each launcher tells a process its rank and the number of processes, and then both for the process' machine.
VARIABLES = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NTASKS_PER_NODE'),
    mpi=(
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
        'OMPI_COMM_WORLD_LOCAL_SIZE',
    ),
)
# A full disk or quota, a folder that must not be written or is none.
FULL_OR_CLOSED = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}
PATIENCE = timedelta(days=1)  # of processes that wait for the checks of another one
STARTERS = dict(pytorch='tools/dist_train.sh or torchrun', slurm='srun', mpi="OpenMPI's mpirun")


def check_gpus(processes: int) -> None:
    """Raise InputError if this machine has GPUs, but fewer than the processes started on it."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise InputError(
            f'{processes} processes on this machine need {processes} GPUs, but {gpus} are visible: start {gpus}, '
            'ask Slurm for all GPUs of the machine (--gres=gpu:N), or set CUDA_VISIBLE_DEVICES= to run on the CPU'
        )


def set_environment(launcher: str) -> int:
    """Set the variables from which torch and MMEngine take numbers and address, whatever the launcher calls them.

    Returns:
        The number of processes on this machine, 1 if the launcher does not say.

    Raises:
        InputError: the process was not started by ``launcher``, or nobody knows the first machine's address.
    """
    env, (rank, world_size, local_rank, local_size) = os.environ, VARIABLES[launcher]
    for name, variable in (('RANK', rank), ('WORLD_SIZE', world_size), ('LOCAL_RANK', local_rank)):
        if variable not in env:
            raise InputError(f'--launcher {launcher}: {variable} is not set, start with {STARTERS[launcher]}')
        env[name] = env[variable]
    if 'MASTER_ADDR' not in env:
        if launcher != 'slurm':
            raise InputError(f'--launcher {launcher} needs the address of the first machine: set MASTER_ADDR')
        hosts = subprocess.check_output(['scontrol', 'show', 'hostname', env['SLURM_NODELIST']], text=True)
        env['MASTER_ADDR'] = hosts.split()[0]
    env.setdefault('MASTER_PORT', '29500')
    return int(env.get(local_size, 1))


def _interface_towards(address: str) -> str | None:
    try:
        family, kind, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        raise InputError(f'MASTER_ADDR={address} cannot be reached: {error}') from error
    for name, addresses in psutil.net_if_addrs().items():
        if own in {part.address.partition('%')[0] for part in addresses}:
            return name
    return None


def init_distributed(cfg: Config, launcher: str) -> None:
    """Join the process group of ``launcher``: the config's backend with GPUs, gloo without.

    MMEngine selects a GPU for every process of a distributed run. Without GPUs the group is made
    before its Runner, which then leaves it as it is, and the model is wrapped without devices.

    Args:
        cfg: gets ``launcher`` and, without GPUs, ``model_wrapper_cfg``.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        InputError: the process was not started by ``launcher``; more processes than GPUs on this machine; no such
            model wrapper.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        return
    processes = set_environment(launcher)
    if launcher == 'pytorch':
        end_with_launcher()
    env = os.environ
    # By default gloo takes the address of the machine's name, which often is one that no other machine reaches.
    # With GPUs, too, states for checkpoints go through gloo.
    if 'GLOO_SOCKET_IFNAME' not in env and (interface := _interface_towards(env['MASTER_ADDR'])):
        env['GLOO_SOCKET_IFNAME'] = interface
    options = (cfg.get('env_cfg') or {}).get('dist_cfg') or dict(backend='nccl')
    if torch.cuda.is_available():
        check_gpus(processes)
        init_dist(launcher, **options)
        return
    seconds = options.get('timeout')
    dist.init_process_group('gloo', timeout=None if seconds is None else timedelta(seconds=seconds))
    cfg.model_wrapper_cfg = cpu_wrapper(cfg)


def cpu_wrapper(cfg: Config) -> dict:
    """The config's ``model_wrapper_cfg``, or what MMEngine wraps a model in without one, with no GPU named.

    Raises:
        InputError: its type is not known.
    """
    default = dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
    wrapper = dict(cfg.get('model_wrapper_cfg') or default)
    kind = wrapper.setdefault('type', 'MMDistributedDataParallel')
    cls = MODEL_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        raise InputError(f'{cfg.filename}: model_wrapper_cfg.type={kind!r} is no registered model wrapper')
    return dict(wrapper, device_ids=None) if issubclass(cls, DistributedDataParallel) else wrapper


def print_error(error: InputError) -> None:
    """Print the one line that the user gets to see, after all that was printed before."""
    with suppress(OSError):  # a pipe without a reader, or a file on a full disk
        sys.stdout.flush()  # lines of other packages wait there unless it is a terminal
    print(f'error: {error}', file=sys.stderr, flush=True)


def once_per_machine(check: Callable[[], None]) -> None:
    """Run ``check`` in one process of each machine while the others wait.

    Raises:
        SystemExit: with code 1, in all processes, after an InputError of ``check`` was reported.
    """
    failed = False
    # Backends end after 10 or 30 minutes of waiting, and millions of images on a slow disk take longer.
    group = dist.new_group(backend='gloo', timeout=PATIENCE) if is_distributed() else None
    if not is_distributed() or os.environ['LOCAL_RANK'] == '0':
        try:
            check()
        except InputError as error:
            print_error(error)  # before the others end: a launcher ends the rest with the first of them
            failed = True
    if any(all_gather_object(failed, group)):
        sys.exit(1)


def _is_main_process() -> bool:
    """Whether this is the first process of a launcher, or the only one; also before processes are connected."""
    ranks = [os.environ[rank] for rank, *_ in VARIABLES.values() if rank in os.environ]
    return not ranks or ranks[0] == '0'


@contextmanager
def guard() -> Iterator[None]:
    """Frame of a tool: an InputError becomes one line on standard error and exit code 1.

    So does a full disk, a file that must not be read or written, or a data set that cannot be downloaded. Ctrl-C
    becomes a line and exit code 130.

    Checkpoints read meanwhile, by whatever library, are data, see :func:`refuse_code`.
    """
    refuse_code()
    logging.raiseExceptions = False  # no traces of a log that does not fit: what is written next fails, too
    try:
        yield
    except InputError as error:
        if not _is_main_process():
            time.sleep(10)  # a launcher ends all processes with the first: then the main one has said it
        print_error(error)
        sys.exit(1)
    except URLError as error:
        remedy = 'get the file that the line "Downloading ..." names, or set data_root to a folder that has the data'
        print_error(InputError(f'a download failed, {error.reason}: {remedy}'))
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL_OR_CLOSED:
            raise
        print_error(InputError(f'{error.filename or "a file"} cannot be read or written: {error.strerror}'))
        sys.exit(1)
    except KeyboardInterrupt:
        if _is_main_process():
            print_error(InputError('interrupted'))
        sys.exit(130)
    finally:
        if dist.is_initialized():
            # The wrapped model holds the group, and the runner's reference cycles hold the model. A
            # group that is still held when the interpreter is gone aborts the process (gloo, torch 2.12).
            gc.collect()
            dist.destroy_process_group()

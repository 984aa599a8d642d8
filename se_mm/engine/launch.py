"""Starting distributed runs, with GPUs or without."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import all_gather_object, init_dist, is_distributed

from se_mm.utils import InputError
from se_mm.weights.pickles import refuse_code


def check_gpus(processes: int) -> None:
    """Raise InputError if this machine has GPUs, but fewer than the processes started on it."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise InputError(
            f'{processes} processes on this machine need {processes} GPUs, but {gpus} are visible: start {gpus}, '
            'or set CUDA_VISIBLE_DEVICES= to run on the CPU'
        )


def _set_environment(launcher: str) -> None:
    # What MMEngine does for these launchers, but only where there are GPUs.
    env = os.environ
    if launcher == 'slurm':
        env['RANK'], env['WORLD_SIZE'] = env['SLURM_PROCID'], env['SLURM_NTASKS']
        env['LOCAL_RANK'] = env.get('SLURM_LOCALID', '0')
        if 'MASTER_ADDR' not in env:
            hosts = subprocess.check_output(['scontrol', 'show', 'hostname', env['SLURM_NODELIST']], text=True)
            env['MASTER_ADDR'] = hosts.split()[0]
    elif launcher == 'mpi':
        env['RANK'], env['WORLD_SIZE'] = env['OMPI_COMM_WORLD_RANK'], env['OMPI_COMM_WORLD_SIZE']
        env['LOCAL_RANK'] = env['OMPI_COMM_WORLD_LOCAL_RANK']
        if 'MASTER_ADDR' not in env:
            raise InputError('--launcher mpi needs the address of the first machine: set MASTER_ADDR')
    env.setdefault('MASTER_PORT', '29500')
    # By default gloo takes the address of the machine's name, which often is one that no other machine reaches.
    if 'GLOO_SOCKET_IFNAME' not in env and (interface := _interface_towards(env['MASTER_ADDR'])):
        env['GLOO_SOCKET_IFNAME'] = interface


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
        InputError: more processes than GPUs on this machine.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        return
    if torch.cuda.is_available():
        check_gpus(int(os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or 1))
        init_dist(launcher, **cfg.get('env_cfg', {}).get('dist_cfg', dict(backend='nccl')))
        return
    _set_environment(launcher)
    dist.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def print_error(error: InputError) -> None:
    """Print the one line that the user gets to see."""
    print(f'error: {error}', file=sys.stderr, flush=True)


def once_per_machine(check: Callable[[], None]) -> None:
    """Run ``check`` in one process of each machine while the others wait.

    Raises:
        SystemExit: with code 1, in all processes, after an InputError of ``check`` was reported.
    """
    failed = False
    if not is_distributed() or os.environ['LOCAL_RANK'] == '0':
        try:
            check()
        except InputError as error:
            print_error(error)  # before the others end: a launcher ends the rest with the first of them
            failed = True
    if any(all_gather_object(failed)):
        sys.exit(1)


@contextmanager
def guard() -> Iterator[None]:
    """Frame of a tool: an InputError becomes one line on standard error and exit code 1.

    Checkpoints read meanwhile, by whatever library, are data, see :func:`refuse_code`.
    """
    refuse_code()
    try:
        yield
    except InputError as error:
        if (os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0') != '0':
            time.sleep(10)  # a launcher ends all processes with the first: then the main one has said it
        print_error(error)
        sys.exit(1)
    finally:
        if dist.is_initialized():
            # The wrapped model holds the group, and the runner's reference cycles hold the model. A
            # group that is still held when the interpreter is gone aborts the process (gloo, torch 2.12).
            gc.collect()
            dist.destroy_process_group()

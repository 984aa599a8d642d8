"""What a process makes of what its launcher tells it. Real runs are in tests/tools/test_distributed.py."""

import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import nn

from se_mm.engine.launch import check_gpus, cpu_wrapper, set_environment
from se_mm.utils import InputError

MPI = {
    f'OMPI_COMM_WORLD_{key}': value for key, value in dict(RANK='5', SIZE='8', LOCAL_RANK='1', LOCAL_SIZE='4').items()
}
SLURM = dict(SLURM_PROCID='5', SLURM_NTASKS='8', SLURM_LOCALID='1', SLURM_NTASKS_PER_NODE='4')


@pytest.fixture(autouse=True)
def environment():
    """What launchers set in it must not reach other tests."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    check_gpus(2)
    with pytest.raises(InputError, match='3 processes on this machine need 3 GPUs, but 2 are visible'):
        check_gpus(3)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    check_gpus(3)


@pytest.mark.parametrize('launcher, told', [('mpi', MPI), ('slurm', SLURM)])
def test_every_launcher_gives_numbers(monkeypatch, launcher, told):
    """Also over a LOCAL_RANK that is there before, as the command line's default is."""
    for key, value in dict(told, MASTER_ADDR='10.0.0.1', LOCAL_RANK='0').items():
        monkeypatch.setenv(key, value)
    for key in ('RANK', 'WORLD_SIZE', 'MASTER_PORT'):
        monkeypatch.setenv(key, 'of another run')
    monkeypatch.delenv('MASTER_PORT')
    assert set_environment(launcher) == 4
    found = {key: os.environ[key] for key in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')}
    assert found == dict(RANK='5', WORLD_SIZE='8', LOCAL_RANK='1', MASTER_ADDR='10.0.0.1', MASTER_PORT='29500')


def test_processes_that_no_launcher_started(monkeypatch):
    for key in [*MPI, *SLURM, 'RANK', 'MASTER_ADDR']:
        monkeypatch.delenv(key, raising=False)
    for launcher, words in dict(pytorch='RANK is not set', slurm='srun', mpi='mpirun').items():
        with pytest.raises(InputError, match=words):
            set_environment(launcher)
    for key, value in MPI.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match='set MASTER_ADDR'):
        set_environment('mpi')


AS_IF_WITH_GPUS = """
import os, sys, torch
from mmengine.config import Config
from se_mm.engine import guard, init_distributed, once_per_machine
torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: int(sys.argv[1]))
torch.cuda.set_device = lambda device: print('takes GPU', device)
with guard():
    init_distributed(Config(dict(env_cfg=dict(dist_cfg=dict(backend='gloo')))), 'mpi')
    once_per_machine(lambda: print('checks'))
    print('wraps for GPU', os.environ['LOCAL_RANK'])
"""


def test_processes_of_mpi_take_their_gpus(run, free_port, tmp_path):
    """MMEngine takes the GPU of OpenMPI's number and wraps the model for that of LOCAL_RANK."""
    program = tmp_path / 'program.py'
    program.write_text(AS_IF_WITH_GPUS)
    told = MPI | dict(OMPI_COMM_WORLD_RANK=0, OMPI_COMM_WORLD_SIZE=1)
    env = dict(told, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port, LOCAL_RANK=0)
    code, output = run(sys.executable, program, 4, **env)
    assert code == 0 and 'takes GPU 1' in output and 'wraps for GPU 1' in output and 'checks' not in output, output
    code, output = run(sys.executable, program, 4, **env | dict(OMPI_COMM_WORLD_LOCAL_RANK=0))
    assert code == 0 and 'wraps for GPU 0' in output and 'checks' in output, output
    code, output = run(sys.executable, program, 2, **env)
    assert code == 1 and '4 processes on this machine need 4 GPUs, but 2 are visible' in output, output


SLOW_CHECK = """
import sys, time, torch
from mmengine.config import Config
from mmengine.dist import barrier, get_rank
from se_mm.engine import guard, init_distributed, once_per_machine
if sys.argv[1] == 'GPUs':
    torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: 4)
    torch.cuda.set_device = lambda device: None
with guard():
    init_distributed(Config(dict(env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=3)))), 'mpi')
    once_per_machine(lambda: time.sleep(8))
    print('checked', flush=True)
    time.sleep(8 * get_rank())
    barrier()
"""


@pytest.mark.slow
@pytest.mark.parametrize('device', ['GPUs', 'CPU'])
def test_processes_wait_longer_for_a_check_than_for_each_other(forking, free_port, tmp_path, device):
    program = tmp_path / 'program.py'
    program.write_text(SLOW_CHECK)
    env = os.environ | MPI | dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port), OMPI_COMM_WORLD_SIZE='2')
    processes = [
        subprocess.Popen(
            [forking / 'python', program, device],
            env=env | dict(OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_LOCAL_RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert all('checked' in output for output, _ in outputs), outputs
    assert processes[0].returncode and 'timed out' in outputs[0][1].lower(), outputs


class OwnWrapper(nn.Module):
    pass


def test_model_wrapper_without_gpus():
    """As MMEngine's without one in the config; the config's own stays, but for the GPUs."""
    default = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    assert cpu_wrapper(Config()) == default | dict(find_unused_parameters=False)
    assert cpu_wrapper(Config(dict(find_unused_parameters=True))) == default | dict(find_unused_parameters=True)
    own = dict(find_unused_parameters=True, static_graph=True)
    assert cpu_wrapper(Config(dict(model_wrapper_cfg=own))) == own | dict(
        type='MMDistributedDataParallel', device_ids=None
    )
    separate = dict(type='MMSeparateDistributedDataParallel')
    assert cpu_wrapper(Config(dict(model_wrapper_cfg=separate))) == separate | dict(device_ids=None)
    wrapper = Config(dict(model_wrapper_cfg=dict(type='X', a=1)))
    with pytest.raises(InputError, match=r"model_wrapper_cfg\.type='X'"):
        cpu_wrapper(wrapper)
    wrapper.model_wrapper_cfg.type = OwnWrapper
    assert cpu_wrapper(wrapper) == dict(type=OwnWrapper, a=1)
    wrapper.model_wrapper_cfg.type = MMDistributedDataParallel
    assert cpu_wrapper(wrapper) == dict(type=MMDistributedDataParallel, a=1, device_ids=None)


@pytest.mark.parametrize(
    'statement, expected, line',
    [
        ("print('x' * 9999, file=open('/dev/full', 'w'), flush=True)", 1, 'cannot be read or written: No space left'),
        ("open('.', 'w')", 1, '. cannot be read or written: Is a directory'),
        ('raise KeyboardInterrupt', 130, 'interrupted'),
        ("__import__('urllib.request').request.urlopen('http://localhost:1/a')", 1, 'a download failed, [Errno 111]'),
        ('{}[0]', 1, 'KeyError: 0'),
    ],
)
def test_what_is_not_the_programs_fault_is_one_line(run, tmp_path, statement, expected, line):
    program = tmp_path / 'program.py'
    program.write_text(f'from se_mm.engine import guard\nwith guard():\n    {statement}')
    code, output = run(sys.executable, program)
    assert code == expected and line in output.splitlines()[-1]
    assert ('Traceback' in output) == ('KeyError' in line)

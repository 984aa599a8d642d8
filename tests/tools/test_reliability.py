"""Trainings by the real tools that go wrong."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from conftest import CONFIGS, TOOLS
from se_mm.engine.interruptions import report_unless_left_alone
from se_mm.utils.config import build_model, load_config
from se_mm.weights import read_checkpoint
from work_dirs import many_scenes

CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'


def options(scenes, epochs, *more):
    pairs = [f'data_root={scenes}', f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=9', *more]
    return ['--cfg-options', 'default_hooks.logger.interval=1', *pairs]


@pytest.mark.parametrize('where', ['loss', 'weights'])
def test_nan_stops_a_training(run, scenes, tmp_path, where):
    more = dict(
        loss=[
            'optim_wrapper.optimizer.lr=1e30',
            "custom_hooks=[dict(type='se_mm.CheckFiniteHook',patience=2,interval=1)]",
        ],
        weights=['optim_wrapper.optimizer.lr=1e30'],
    )[where]
    train = [sys.executable, TOOLS / 'train.py', CLASSIFIER]
    code, output = run(*train, *options(scenes, 9, 'train_dataloader.batch_size=8', *more))
    last = output.strip().splitlines()[-1]
    assert code == 1 and re.match(r'error: training stopped at epoch \d+, iteration \d+: ', last), output
    assert 'Try a lower learning rate' in last
    for path in tmp_path.rglob('*.pth'):
        assert all(w.isfinite().all() for w in read_checkpoint(path)['state_dict'].values() if w.is_floating_point())


@pytest.mark.parametrize(
    ('tool', 'arguments', 'purpose'), [('train.py', [], 'training'), ('test.py', ['weights.pth'], 'evaluation')]
)
def test_two_in_one_folder(run, scenes, tmp_path, tool, arguments, purpose):
    from se_mm.engine.work_dirs import lock_work_dir

    lock = lock_work_dir(tmp_path / 'work', purpose)
    torch.save(build_model(load_config(CLASSIFIER)).state_dict(), tmp_path / 'weights.pth')
    command = [sys.executable, TOOLS / tool, CLASSIFIER, *arguments, '--work-dir', tmp_path / 'work', '--cfg-options']
    code, output = run(*command, f'data_root={scenes}')
    lock.release()
    assert code == 1 and f'work: another {purpose} writes there' in output.strip().splitlines()[-1], output
    assert [path.name for path in (tmp_path / 'work').iterdir()] == [f'.{purpose}.lock']


SMALL = f"""
_base_ = {str(CLASSIFIER)!r}
custom_imports = dict(imports=['dies'], allow_failed_imports=True)
model = dict(backbone=dict(stem_channels=8, base_channels=8, se_ratio=4, drop_path_rate=0.3), head=dict(in_channels=64))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=-1))
train_dataloader = dict(batch_size=4, num_batch_per_epoch=6)
train_cfg = dict(val_interval=99)
"""


@pytest.fixture
def small(scenes, tmp_path):
    """A command that trains a small classifier, by train.py or with two processes, and its work dir."""
    (tmp_path / 'small.py').write_text(SMALL)

    def command(epochs, *more, processes=1):
        start = [sys.executable, TOOLS / 'train.py'] if processes == 1 else [TOOLS / 'dist_train.sh']
        count = [str(processes)] if processes > 1 else []
        options = ['--cfg-options', f'data_root={scenes}', f'train_cfg.max_epochs={epochs}']
        return [str(part) for part in (*start, tmp_path / 'small.py', *count, *more, *options)]

    return command


def weights(path):
    return read_checkpoint(path)['state_dict']


def assert_equal(first, second):
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def started(command, folder, words, **environment):
    """A program whose output has these words by now, and the file of its output."""
    log = folder / 'output.txt'
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    with log.open('w') as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=file,
            stderr=file,
            env={**os.environ, 'PATH': path, **environment},
            start_new_session=True,  # a group, which gets Ctrl-C as in a terminal
        )
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    return process, log


@pytest.mark.parametrize(('processes', 'number'), [(1, signal.SIGTERM), (2, signal.SIGUSR1)])
def test_a_signal_stops_after_a_checkpoint(run, small, tmp_path, free_port, processes, number):
    command = small(8, '--work-dir', 'work', processes=processes)
    workers = [f'train_dataloader.num_workers={processes - 1}', f'train_dataloader.persistent_workers={processes > 1}']
    process, log = started([*command, *workers], tmp_path, 'Epoch(train) [2]', PORT=str(free_port))
    process.send_signal(number)
    assert process.wait(timeout=100) == 75, log.read_text()
    path = tmp_path / 'work' / 'interrupted.pth'
    assert (tmp_path / 'work' / 'last_checkpoint').read_text() == str(path)
    assert re.search(
        r'(SIGTERM|SIGUSR1): training stopped after iteration \d+, \S+/interrupted.pth is written', log.read_text()
    )
    assert 'Traceback' not in log.read_text()
    meta = read_checkpoint(path)['meta']
    assert 6 <= meta['iter'] < 48
    ends = meta['epoch'] + 2  # of the epoch after the one that was interrupted
    code, output = run(*small(ends, '--work-dir', 'work', '--resume', processes=processes), PORT=free_port)
    assert code == 0 and 'interrupted.pth\n' in output.partition('resumed epoch')[0], output
    assert not path.exists()
    assert run(*small(ends, '--work-dir', 'whole', processes=processes), PORT=free_port)[0] == 0
    assert_equal(tmp_path / 'work' / f'epoch_{ends}.pth', tmp_path / 'whole' / f'epoch_{ends}.pth')


@pytest.mark.parametrize(('tool', 'processes'), [('train', 1), ('train', 2), ('test', 1)])
def test_interrupt_is_one_line(small, scenes, tmp_path, free_port, tool, processes):
    words = 'Epoch(train)'
    command = [*small(99, processes=processes), 'train_dataloader.num_workers=2']
    if tool == 'test':
        words = 'mmengine - INFO - Load checkpoint'
        (tmp_path / 'small.py').write_text(SMALL + many_scenes(scenes))
        torch.save(
            dict(state_dict=build_model(load_config(tmp_path / 'small.py')).state_dict()), tmp_path / 'small.pth'
        )
        command = [sys.executable, TOOLS / 'test.py', 'small.py', 'small.pth', '--cfg-options', f'data_root={scenes}']
    process, log = started(command, tmp_path, words, PORT=str(free_port))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=100) == 130, log.read_text()
    after = log.read_text().rpartition(words)[2]
    assert after.count('error: ') == 1 and 'error: interrupted' in after and 'Traceback' not in after


def test_workers_that_are_left_alone_say_nothing(capsys):
    for error in (EOFError(), ConnectionResetError()):
        report_unless_left_alone(type(error), error, None)
    assert capsys.readouterr().err == ''
    report_unless_left_alone(ValueError, ValueError('broken'), None)
    assert 'ValueError: broken' in capsys.readouterr().err


DIES = """
import os
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Dies(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'
        if first and os.environ['RANK'] == '1' and runner.iter == 9:
            os.kill(os.getpid(), 9)
"""


def test_killed_processes_are_started_again(run, small, tmp_path, free_port):
    """Neither an older training's checkpoints in the work dir nor the interruption change what comes out."""
    assert run(*small(3, '--work-dir', 'work', processes=2), PORT=free_port)[0] == 0
    whole = weights(tmp_path / 'work' / 'epoch_3.pth')
    (tmp_path / 'dies.py').write_text(DIES)
    command = [
        *small(3, '--work-dir', 'work', processes=2),
        "custom_hooks=[dict(type='SyncBuffersHook'),dict(type='Dies')]",
    ]
    code, output = run(*command, PORT=free_port, RESTARTS=1, PYTHONPATH=tmp_path)
    assert code == 0, output
    assert 'epoch_1.pth' in output.partition('resumed epoch')[0]
    again = weights(tmp_path / 'work' / 'epoch_3.pth')
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_the_only_checkpoint_is_kept_until_the_next_is_there(run, small, tmp_path):
    code, output = run(*small(2), 'default_hooks.checkpoint.max_keep_ckpts=1')
    assert code == 0 and 'max_keep_ckpts=1 becomes 2: MMEngine deletes the old checkpoint' in output
    assert sorted(path.name for path in tmp_path.rglob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth']


def test_restarts_are_a_number_and_of_one_machine(run, small):
    code, output = run(*small(1, processes=2), RESTARTS='often')
    assert (code, output) == (2, 'error: RESTARTS=often: give a number of restarts, such as 3\n')
    code, output = run(*small(1, processes=2), RESTARTS=1, NNODES=2, NODE_RANK=1, MASTER_ADDR='127.0.0.1')
    assert code == 1 and 'RESTARTS=1: processes are started again on one machine only' in output


def test_processes_end_with_a_launcher_that_is_killed(small, tmp_path, free_port):
    process, log = started(small(99, processes=2), tmp_path, 'Epoch(train)', PORT=str(free_port))
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.kill()
    gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive, log.read_text()
    assert weights(tmp_path / 'work_dirs' / 'small' / 'interrupted.pth')


HANGS = """
import os
import time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Hangs(Hook):
    priority = 'VERY_LOW'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if os.environ['RANK'] == str(self.rank) and runner.iter == 3:
            time.sleep(1000)

    def __init__(self, rank):
        self.rank = rank
"""


def test_a_process_that_hangs_is_named(run, small, tmp_path, free_port):
    (tmp_path / 'dies.py').write_text(HANGS)
    hooks = "custom_hooks=[dict(type='Hangs',rank=1),dict(type='se_mm.NameHangingHook',timeout=4)]"
    begin = time.monotonic()
    code, output = run(*small(2, processes=2), hooks, PORT=free_port, PYTHONPATH=tmp_path)
    assert code == 1 and time.monotonic() - begin < 90
    assert re.search(
        r'error: process 1 \(on \S+\) hangs: for \d+ s it has been before the gradients of iteration 4', output
    ), output
    assert 'Process 0 waits for it, in the gradients of iteration 4' in output

"""Trainings by the real tools that go wrong."""

import re
import sys

import pytest
from conftest import CONFIGS, TOOLS

from se_mm.weights import read_checkpoint

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


def test_two_trainings_in_one_folder(run, scenes, tmp_path):
    from se_mm.engine.work_dirs import lock_work_dir

    lock = lock_work_dir(tmp_path / 'work')
    train = [sys.executable, TOOLS / 'train.py', CLASSIFIER, '--work-dir', tmp_path / 'work']
    code, output = run(*train, *options(scenes, 1))
    lock.release()
    assert code == 1 and 'work: another training writes there' in output.strip().splitlines()[-1]
    assert [path.name for path in (tmp_path / 'work').iterdir()] == ['.training.lock']

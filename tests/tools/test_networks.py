"""Configs of the papers' small networks, trained and evaluated with the tools."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from scipy.io import savemat

from conftest import CONFIGS, TOOLS


@pytest.fixture(scope='module')
def svhn(tmp_path_factory):
    """Digits as stripes of their own brightness, in the files of SVHN."""
    folder = tmp_path_factory.mktemp('svhn')
    generator = np.random.default_rng(0)
    for split, images in (('train', 64), ('test', 32)):
        labels = generator.integers(1, 11, images)
        noise = generator.integers(0, 20, (32, 32, 3, images))
        savemat(folder / f'{split}_32x32.mat', dict(X=(noise + 20 * labels).astype(np.uint8), y=labels[:, None]))
    return folder


def options(svhn, own=False):
    values = {'train_cfg.max_epochs': 1, 'default_hooks.logger.interval': 1}
    for loader in ('train', 'val', 'test'):
        prefix = f'{loader}_dataloader'
        values |= {f'{prefix}.dataset.data_root': svhn, f'{prefix}.batch_size': 16, f'{prefix}.num_workers': 0}
        values |= {f'{prefix}.persistent_workers': False}
        if own:
            values |= {f'{prefix}.dataset.type': 'se_mm.SVHN'}
    return ['--cfg-options', *(f'{key}={value}' for key, value in values.items())]


@pytest.mark.parametrize('name', ['se-bump_r18_svhn', 'se-slow-squeeze-excite_cnn_cifar10', 'wrn16_8_cifar10'])
def test_trains_and_is_evaluated(run, svhn, tmp_path, name):
    (config,) = CONFIGS.rglob(f'{name}.py')
    arguments = options(svhn, own='cifar' in name)
    code, output = run(sys.executable, TOOLS / 'train.py', config, *arguments)
    assert code == 0, output
    work = tmp_path / 'work_dirs' / name
    code, output = run(sys.executable, TOOLS / 'test.py', config, work / 'epoch_1.pth', *arguments)
    assert code == 0, output
    metrics = json.loads((work / 'metrics.json').read_text())
    assert set(metrics['metrics']) == {'error/top1', 'error/top5'} and metrics['dataset']['images'] == 32
    assert 0 <= metrics['metrics']['error/top5'] <= metrics['metrics']['error/top1'] <= 100


def test_evaluated_with_folded_batch_norms(run, svhn, tmp_path):
    """The same predictions, but for rounding."""
    config, arguments = CONFIGS / 'variations' / 'se_r18_svhn.py', options(svhn)
    code, output = run(sys.executable, TOOLS / 'train.py', config, *arguments)
    assert code == 0, output
    scores = []
    for extra in ([], ['--fuse-conv-bn']):
        out = tmp_path / f'{len(extra)}.pkl'
        test = [sys.executable, TOOLS / 'test.py', config, 'work_dirs/se_r18_svhn/epoch_1.pth', '--out', out, *extra]
        code, output = run(*test, *arguments)
        assert code == 0, output
        scores.append(torch.stack([sample['pred_score'] for sample in pickle.loads(out.read_bytes())]))
    assert not torch.equal(*scores)
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)
    hooks = ['custom_hooks.0.type=EMAHook']
    code, output = run(*test, *arguments, *hooks)
    assert code != 0 and 'EMAHook' in output and 'Traceback' not in output


def test_missing_files_are_named_before_training(run, tmp_path):
    (tmp_path / 'svhn').mkdir()
    (tmp_path / 'svhn' / 'readme').write_text('')
    config = CONFIGS / 'variations' / 'r18_svhn.py'
    code, output = run(sys.executable, TOOLS / 'train.py', config, *options(tmp_path / 'svhn'))
    assert code != 0 and 'train_32x32.mat is missing' in output and 'Traceback' not in output

"""Trainings that are resumed, beside trainings without interruption: the weights are equal to the last bit."""

import copy
import logging
import random
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from conftest import CONFIGS, TOOLS
from se_mm.engine.exact_resume import (
    EndlessBatches,
    ExactResumeHook,
    Seeded,
    SeededBatches,
    SeededDataset,
    derived_seed,
)
from se_mm.utils import InputError
from se_mm.utils.config import load_config, use_scope
from se_mm.weights import read_checkpoint

STEPS = 5  # of an epoch: 20 images, 4 a step


@pytest.fixture
def classifier(scenes):
    """Two epochs with augmentation, drop path and dropout, and a checkpoint after every second step."""
    cfg = load_config(CONFIGS / 'quickstart' / 'se_r18_scenes.py', dict(data_root=str(scenes)))
    cfg.model.backbone.update(base_channels=8, stem_channels=8, se_ratio=4, drop_path_rate=0.5)
    cfg.model.head.in_channels = 64
    cfg.train_dataloader.update(batch_size=4, num_batch_per_epoch=STEPS)
    return _small(cfg)


@pytest.fixture
def detector(shapes):
    """Two epochs on images of several sizes, by the data and by the batch."""
    cfg = load_config(CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py', dict(data_root=str(shapes)))
    cfg.model.backbone.update(base_channels=8, stem_channels=8, se_ratio=4)
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    resize = dict(type='BatchSyncRandomResize', random_size_range=(64, 128), interval=3, size_divisor=32)
    cfg.model.data_preprocessor.batch_augments = [resize]
    cfg.train_dataloader.dataset.pipeline[2] = dict(type='RandomResize', scale=[(64, 64), (96, 96)], keep_ratio=True)
    cfg.train_dataloader.update(batch_size=2, num_batch_per_epoch=STEPS)
    return _small(cfg)


def _small(cfg):
    cfg.train_cfg.update(max_epochs=2, val_interval=9)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=2, by_epoch=False, max_keep_ckpts=-1)
    cfg.custom_hooks = [dict(type='se_mm.ExactResumeHook')]
    cfg.visualizer = None
    return cfg


def train(cfg, folder, checkpoint=None, seen=None):
    """Train, from a checkpoint if there is one; returns the state of model and optimizer at the end."""
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(folder)
    cfg.experiment_name = f'{folder.parent.name}_{folder.name}'  # MMEngine keeps runners by name
    if checkpoint is not None:
        cfg.load_from, cfg.resume = str(checkpoint), True
    use_scope(cfg)
    torch.manual_seed(len(str(folder)))  # what was drawn before does not count
    runner = Runner.from_cfg(cfg)
    if seen is not None:
        step = runner.model.train_step
        runner.model.train_step = lambda *args, **kwargs: (seen.append(runner.iter), step(*args, **kwargs))[1]
    model = runner.train()
    assert runner.iter == 2 * STEPS
    return {**model.state_dict(), **_tensors(runner.optim_wrapper.state_dict()), **_averages(runner)}


def _tensors(state):
    return {f'{key}.{name}': x for key, s in state['state'].items() for name, x in s.items() if torch.is_tensor(x)}


def _averages(runner):
    found = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    return {f'average.{name}': x for hook in found for name, x in hook.ema_model.state_dict().items()}


def assert_exact(cfg, tmp_path, steps):
    expected = train(cfg, tmp_path / 'whole')
    for step in steps:
        seen = []
        actual = train(cfg, tmp_path / f'from{step}', tmp_path / 'whole' / f'iter_{step}.pth', seen)
        assert seen == list(range(step, 2 * STEPS))
        assert actual.keys() == expected.keys()
        different = [name for name, tensor in expected.items() if not torch.equal(tensor, actual[name])]
        assert not different, f'{len(different)} of {len(expected)} tensors differ after step {step}'


def test_other_seeds_give_other_weights(classifier, tmp_path):
    one, other = copy.deepcopy(classifier), copy.deepcopy(classifier)
    other.randomness = dict(seed=1)
    weights = [train(cfg, tmp_path / name) for name, cfg in (('one', one), ('other', other))]
    assert all((found['backbone.conv1.weight'] != weights[0]['backbone.conv1.weight']).any() for found in weights[1:])


@pytest.mark.parametrize(
    'loader',
    [dict(num_workers=2, persistent_workers=False), dict(num_workers=2, persistent_workers=True)],
    ids=['workers', 'persistent workers'],
)
def test_classifier(classifier, tmp_path, loader):
    classifier.train_dataloader.update(loader)
    assert_exact(classifier, tmp_path, steps=(6,))


def test_average_and_accumulated_gradients(classifier, tmp_path):
    classifier.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    classifier.optim_wrapper.accumulative_counts = 3
    assert_exact(classifier, tmp_path, steps=(4,))


def test_hook_that_asks_the_loader_for_its_batch_size(classifier, tmp_path):
    classifier.custom_hooks.append(dict(type='PreciseBNHook', num_samples=12))
    assert_exact(classifier, tmp_path, steps=(6,))


def test_detector_with_images_of_several_sizes(detector, tmp_path):
    assert_exact(detector, tmp_path, steps=(4,))


@pytest.mark.parametrize('sampler', ['DefaultSampler', 'InfiniteSampler'])
def test_iterations_without_epochs(classifier, tmp_path, sampler):
    classifier.train_dataloader.sampler.type = sampler
    classifier.train_cfg = dict(by_epoch=False, max_iters=2 * STEPS, val_interval=99)
    classifier.param_scheduler = []
    assert_exact(classifier, tmp_path, steps=(6,))


def test_checkpoint_at_the_end_of_an_epoch(classifier, tmp_path):
    classifier.default_hooks.checkpoint.interval = STEPS
    whole = train(classifier, tmp_path / 'whole')
    by_epoch = copy.deepcopy(classifier)
    by_epoch.default_hooks.checkpoint.update(by_epoch=True, interval=1)
    train(by_epoch, tmp_path / 'epochs')
    for number, checkpoint in enumerate(
        (tmp_path / 'whole' / f'iter_{STEPS}.pth', tmp_path / 'epochs' / 'epoch_1.pth')
    ):
        actual = train(classifier, tmp_path / f'from{number}', checkpoint)
        assert all(torch.equal(tensor, actual[name]) for name, tensor in whole.items())


@pytest.fixture
def whole_and_part(run, tmp_path):
    """Train by the real tool, and again from a checkpoint of the first training; returns both ends."""

    def train_twice(cfg, step, *command):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook['type'] != 'se_mm.ExactResumeHook']
        cfg.dump(tmp_path / 'config.py')
        command = [part if part != 'CONFIG' else tmp_path / 'config.py' for part in command]
        code, output = run(*command, '--work-dir', 'whole')
        assert code == 0, output
        (tmp_path / 'part').mkdir()
        shutil.copy(tmp_path / 'whole' / f'iter_{step}.pth', tmp_path / 'part')
        code, output = run(*command, '--work-dir', 'part', '--resume')
        assert code == 0 and f'iter_{step}.pth' in output, output
        return [read_checkpoint(tmp_path / name / f'iter_{2 * STEPS}.pth') for name in ('whole', 'part')]

    return train_twice


def test_seed_that_was_drawn(classifier, whole_and_part):
    """Without a seed in the config the tool takes up the one of the checkpoint, before samplers are built."""
    classifier.pop('randomness')
    whole, part = whole_and_part(classifier, 4, sys.executable, TOOLS / 'train.py', 'CONFIG')
    assert whole['meta']['seed'] == part['meta']['seed']
    assert all(torch.equal(x, part['state_dict'][name]) for name, x in whole['state_dict'].items())


def test_iterations_without_epochs_by_the_tool(classifier, whole_and_part):
    classifier.train_cfg = dict(by_epoch=False, max_iters=2 * STEPS, val_interval=99)
    classifier.param_scheduler = []
    whole, part = whole_and_part(classifier, 8, sys.executable, TOOLS / 'train.py', 'CONFIG')  # in the second pass
    assert all(torch.equal(x, part['state_dict'][name]) for name, x in whole['state_dict'].items())


def test_two_processes(classifier, whole_and_part, tmp_path):
    """Each has batch norm statistics and gradients of its own, which are averaged at the end of an epoch or window."""
    classifier.custom_hooks.append(dict(type='SyncBuffersHook'))
    classifier.optim_wrapper.accumulative_counts = 3
    whole, part = whole_and_part(classifier, 4, TOOLS / 'dist_train.sh', 'CONFIG', '2')
    states = read_checkpoint(tmp_path / 'whole' / 'iter_4.pth')['exact_resume']['processes']
    for kind in ('buffers', 'gradients'):
        assert any((one != other).any() for one, other in zip(*(state[kind].values() for state in states), strict=True))
    assert all(torch.equal(x, part['state_dict'][name]) for name, x in whole['state_dict'].items())


def test_what_cannot_be_exact_is_said(classifier, tmp_path, caplog):
    train(classifier, tmp_path / 'whole')
    classifier.train_dataloader.num_batch_per_epoch = STEPS - 1
    cfg = copy.deepcopy(classifier)
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'other'), 'other_length'
    cfg.load_from, cfg.resume = str(tmp_path / 'whole' / 'iter_4.pth'), True
    use_scope(cfg)
    with caplog.at_level(logging.WARNING):
        Runner.from_cfg(cfg).train()
    text = ''.join(path.read_text() for path in (tmp_path / 'other').rglob('*.log'))
    assert 'may differ from one without interruption: an epoch had 5 batches, and now has 4' in text


class Draws(Dataset):
    pipeline = 'first'

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def test_data_without_a_batch_are_an_error():
    loader = DataLoader(Draws(), batch_sampler=SeededBatches(BatchSampler(range(3), 4, drop_last=True)))
    with pytest.raises(InputError, match='the training data give no batch'):
        next(EndlessBatches(loader, 0))


def test_samples_depend_on_their_seeds_alone():
    dataset = SeededDataset(Draws())
    seeds = [derived_seed(0, 7, rank, epoch, place) for rank in range(2) for epoch in range(2) for place in range(2)]
    samples = [dataset[Seeded(1, seed)] for seed in seeds]
    assert samples[::-1] == [dataset[Seeded(1, seed)] for seed in seeds[::-1]]
    assert all(len({sample[i] for sample in samples}) == len(seeds) for i in (1, 2, 3))
    assert dataset[2][0] == 2 and len(dataset) == 3
    dataset.pipeline = 'second'  # as hooks do
    assert dataset.dataset.pipeline == 'second' and copy.deepcopy(dataset).pipeline == 'second'
    assert not hasattr(dataset, '__getitems__') and not hasattr(dataset, 'metainfo')


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


def test_streams_are_left_as_they_are():
    runner = types.SimpleNamespace(train_loop=types.SimpleNamespace(dataloader=DataLoader(Stream(), batch_size=2)))
    loader = runner.train_loop.dataloader
    ExactResumeHook().before_train(runner)
    assert runner.train_loop.dataloader is loader and [len(batch) for batch in loader] == [2, 1]

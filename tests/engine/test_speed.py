"""Options that make runs faster leave their numbers as they are."""

import re
import sys
from argparse import Namespace
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.runner import Runner

from conftest import CONFIGS, TOOLS
from se_mm.datasets import LoadImageOnce
from se_mm.engine.arguments import apply_arguments, cache_images
from se_mm.engine.hooks import ChannelsLastHook
from se_mm.utils import InputError
from se_mm.utils.config import LOADERS, load_config, use_scope

CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'


def losses(output):
    return [float(value) for value in re.findall(r'Epoch\(train\) .* loss: ([\d.]+)', output)]


def options(root):
    small = ('model.backbone.stem_channels=8', 'model.backbone.base_channels=16', 'model.head.in_channels=128')
    length = ('train_cfg.max_epochs=2', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1')
    return ['--cfg-options', f'data_root={root}', *small, *length, 'train_dataloader.batch_size=8']


def test_training_and_test_with_all_options(run, scenes, tmp_path):
    work = ['--work-dir', tmp_path / 'work']
    fast = ['--channels-last', '--compile', '--cache-images']
    eager = 'compile.backend=eager'  # traced as for any backend, without minutes of compiling
    code, usual = run(sys.executable, TOOLS / 'train.py', CLASSIFIER, *options(scenes))
    assert code == 0, usual
    unused = ['test_dataloader.num_workers=1', 'test_dataloader.persistent_workers=False']  # cannot keep images
    code, output = run(sys.executable, TOOLS / 'train.py', CLASSIFIER, *work, *fast, *options(scenes), eager, *unused)
    assert code == 0 and 'Model has been "compiled"' in output, output
    assert len(losses(output)) == 8 and losses(output) == pytest.approx(losses(usual), abs=2e-3)

    test = [sys.executable, TOOLS / 'test.py', CLASSIFIER, tmp_path / 'work' / 'epoch_2.pth', *work]
    unused = ['train_dataloader.num_workers=1', 'train_dataloader.persistent_workers=False']
    code, output = run(*test, *fast, *options(scenes), eager, *unused)
    logged = re.findall(r'Epoch\(val\) \[2\].*top1: ([\d.]+)', usual)
    assert code == 0 and logged and re.findall(r'Epoch\(test\).*top1: ([\d.]+)', output) == logged, output


def test_amp_on_cpus_computes_in_bfloat16(run, scenes, tmp_path):
    train = [sys.executable, TOOLS / 'train.py', CLASSIFIER, *options(scenes)]
    code, usual = run(*train, '--work-dir', tmp_path / 'usual', CUDA_VISIBLE_DEVICES='')
    assert code == 0, usual
    code, output = run(
        *train, 'optim_wrapper.loss_scale=dynamic', '--work-dir', tmp_path / 'amp', '--amp', CUDA_VISIBLE_DEVICES=''
    )
    assert code == 0 and len(losses(output)) == 8, output
    assert losses(output) != losses(usual) and losses(output) == pytest.approx(losses(usual), rel=0.1)
    saved = torch.load(tmp_path / 'amp' / 'epoch_2.pth', weights_only=False)
    floats = {x.dtype for x in saved['state_dict'].values() if x.is_floating_point()}
    assert floats == {torch.float32}


def test_channels_last_hook_keeps_what_the_model_starts_from(scenes, tmp_path):
    cfg = load_config(CLASSIFIER, {'data_root': str(scenes), 'train_cfg.max_epochs': 1}, str(tmp_path))
    use_scope(cfg)
    cfg.update(experiment_name='usual')
    last = deepcopy(cfg)
    last.update(experiment_name='last', custom_hooks=[*cfg.custom_hooks, dict(type='se_mm.ChannelsLastHook')])
    models = []
    for config in (cfg, last):
        runner = Runner.from_cfg(config)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner._init_model_weights()
        runner.call_hook('before_train')
        models.append(runner.model)
    assert any(isinstance(hook, ChannelsLastHook) for hook in runner.hooks)
    usual, changed = models
    for (name, before), after in zip(usual.named_parameters(), changed.parameters()):
        torch.testing.assert_close(before, after, rtol=0, atol=0, msg=name)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for model in models:
        model.eval()
    (plain,), (moved,) = usual.backbone(image), changed.backbone(image)
    assert moved.is_contiguous(memory_format=torch.channels_last) and not moved.is_contiguous()
    torch.testing.assert_close(plain, moved, rtol=1e-4, atol=1e-4)


def test_cached_images_are_those_of_the_files(scenes, monkeypatch):
    paths = [str(path) for path in sorted(scenes.rglob('*.jpg'))[:3]]
    kept, usual = LoadImageOnce(to_float32=True), LoadImageFromFile(to_float32=True)
    first = [kept(dict(img_path=path, gt_label=i)) for i, path in enumerate(paths)]
    expected = [usual(dict(img_path=path, gt_label=i)) for i, path in enumerate(paths)]
    for found in first:
        found['img'] *= 0  # as a transform may do
    monkeypatch.setattr('mmengine.fileio.get', lambda *_, **__: pytest.fail('read again'))
    for path, before in zip(paths, expected):
        after = kept(dict(img_path=path, gt_label=before['gt_label']))
        assert after.keys() == before.keys() and after['img_shape'] == before['img_shape']
        np.testing.assert_array_equal(after['img'], before['img'])


def test_images_cannot_be_kept_by_workers_that_end(scenes):
    cfg = load_config(CLASSIFIER, {'train_dataloader.num_workers': 2})
    with pytest.raises(InputError, match='set train_dataloader.persistent_workers=True'):
        cache_images(cfg, LOADERS)
    cache_images(cfg, ['test_dataloader'])  # as tools/test.py does
    cfg.train_dataloader.persistent_workers = True
    cache_images(cfg, LOADERS)
    loads = [cfg[f'{split}_dataloader'].dataset.pipeline[0].type for split in ('train', 'val', 'test')]
    assert loads == ['se_mm.LoadImageOnce'] * 3


def test_a_warm_up_compiles_nothing_anew(scenes, tmp_path):
    """Every iteration has another learning rate, and torch compiles steps of optimizers for one rate each."""
    cfg = load_config(CLASSIFIER, {'data_root': str(scenes), 'train_cfg.max_epochs': 1}, str(tmp_path))
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01, momentum=0.9)
    cfg.train_dataloader.batch_size = 4
    cfg.param_scheduler = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=100)
    use_scope(cfg)
    cfg.compile = dict(backend='aot_eager')
    apply_arguments(cfg, Namespace(channels_last=False, compile=False, cache_images=False), LOADERS)
    runner = Runner.from_cfg(cfg)
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
        runner.train()
    assert runner.iter > 4

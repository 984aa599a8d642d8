"""What MMEngine takes from a checkpoint on --resume: each fault is one line before the training."""

import copy

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from conftest import CONFIGS
from se_mm.engine.resume_checks import ELEMENTWISE, check_resumable
from se_mm.engine.weight_checks import check_checkpoint
from se_mm.utils import InputError
from se_mm.utils.config import build_model, load_config, use_scope
from se_mm.weights import read_checkpoint


def trained(cfg, steps=1):
    """A checkpoint as MMEngine writes it, after a step with random gradients."""
    model = build_model(cfg)
    kind = dict(cfg.optim_wrapper.optimizer)
    optimizer = getattr(torch.optim, kind.pop('type'))(model.parameters(), **kind)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return dict(
        meta=dict(epoch=1, iter=4, seed=0, cfg='', dataset_meta=None),
        state_dict=model.state_dict(),
        message_hub=dict(
            log_scalars={'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])},
            runtime_info=dict(epoch=0, iter=3),
            resumed_keys={'train/loss': True, 'iter': True},
        ),
        optimizer=optimizer.state_dict(),
        param_schedulers=[dict(last_step=1, _global_step=1)],
        exact_resume=dict(batches=4, seen=2, processes=[dict(buffers={}, gradients={}, sizes=[(64, 96), None])]),
    )


@pytest.fixture(scope='module')
def cfg():
    cfg = load_config(CONFIGS / 'quickstart' / 'se_r18_scenes.py')
    use_scope(cfg)
    return cfg


@pytest.fixture(scope='module')
def model(cfg):
    return build_model(cfg)


@pytest.fixture(scope='module')
def written(cfg):
    return trained(cfg)


def with_optimizer(cfg, kind, **options):
    changed = copy.deepcopy(cfg)
    changed.optim_wrapper.optimizer = dict(dict(type=kind, lr=0.01), **options)
    return changed


@pytest.mark.parametrize('kind', sorted(cls.__name__ for cls in ELEMENTWISE))
def test_written_checkpoints_are_resumed(kind, cfg, model, tmp_path):
    cfg = with_optimizer(cfg, kind)
    torch.save(trained(cfg), tmp_path / 'a.pth')
    check_checkpoint(str(tmp_path / 'a.pth'), model, training=True, resume=cfg)


@pytest.mark.parametrize('options', [dict(momentum=0.9, nesterov=True), dict(momentum=0)])
def test_optimizers_may_keep_nothing(options, cfg, model):
    cfg = with_optimizer(cfg, 'SGD', **options)
    check_resumable('a.pth', trained(cfg), cfg, model)
    check_resumable('a.pth', trained(cfg, steps=0), cfg, model)


def test_the_end_of_a_training_is_resumed(written, cfg, model):
    content = dict(written, meta=dict(written['meta'], epoch=cfg.train_cfg.max_epochs))
    check_resumable('a.pth', content, cfg, model)


def fault(content, cfg, model):
    remedy = r'load_from=a\.pth resume=False '
    with pytest.raises(InputError, match=rf'^checkpoint a\.pth cannot be resumed.*{remedy}') as caught:
        check_resumable('a.pth', content, cfg, model)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    'keys, value, words',
    [
        (['meta'], 'text', 'its meta is no dict but a str'),
        (['meta'], None, 'its meta is no dict but a NoneType'),
        (['meta', 'epoch'], 10**9, 'its meta.epoch is 1000000000, and the training ends at train_cfg.max_epochs='),
        (['meta', 'epoch'], -5, 'its meta.epoch is -5, no number from 0'),
        (['meta', 'epoch'], 1.5, 'its meta.epoch is 1.5, no number from 0'),
        (['meta', 'epoch'], None, 'its meta.epoch is None, no number from 0'),
        (['meta', 'iter'], 'x' * 1000, "its meta.iter is 'xxx"),
        (['meta', 'seed'], -1, 'its meta.seed is -1, no number from 0 to'),
        (['message_hub'], [], 'its message_hub has no dict log_scalars'),
        (['message_hub', 'runtime_info'], None, 'its message_hub has no dict runtime_info'),
        (['message_hub', 'log_scalars'], {1: 2}, 'its message_hub.log_scalars has names that are no text'),
        (['message_hub', 'resumed_keys', 'iter'], 'yes', 'its message_hub.resumed_keys has values other than'),
        (['param_schedulers'], 'text', 'its param_schedulers are no list of dicts'),
        (['param_schedulers'], [1], 'its param_schedulers are no list of dicts'),
        (['exact_resume'], [], 'its exact_resume is no dict with numbers'),
        (['exact_resume', 'seen'], -1, 'its exact_resume is no dict with numbers'),
        (['exact_resume', 'seen'], 5, 'its exact_resume says that 5 of 4 batches were seen'),
        (['exact_resume', 'processes'], [None], 'its exact_resume has processes that are no dicts of'),
        (['exact_resume', 'processes', 0, 'sizes'], [(1, -1)], 'its exact_resume has processes that are no dicts of'),
        (
            ['exact_resume', 'processes', 0, 'buffers'],
            {'backbone.bn1.running_mean': torch.ones(2)},
            'that does not fit',
        ),
        (['exact_resume', 'processes', 0, 'gradients'], {'none': torch.ones(2)}, "a tensor 'none' that does not fit"),
        (['exact_resume', 'processes', 0, 'gradients'], {'head.fc.bias': torch.ones(8).long()}, 'of another kind'),
        (['optimizer'], [1], 'its optimizer is no dict but a list'),
        (['optimizer'], {}, "its optimizer does not fit the config's AdamW ("),
        (['optimizer', 'param_groups'], [], "its optimizer does not fit the config's AdamW ("),
        (['optimizer', 'param_groups', 0, 'params'], [0], "its optimizer does not fit the config's AdamW ("),
        (['optimizer', 'param_groups', 0, 'lr'], 'text', "its optimizer does not fit the config's AdamW ("),
        (['optimizer', 'param_groups', 0, 'lr'], float('nan'), 'a step with its options gives NaN'),
        (['optimizer', 'state', 0], 'text', "its optimizer does not fit the config's AdamW"),
        (['optimizer', 'state', 0], {'step': torch.tensor(1.0)}, 'it keeps no exp_avg'),
        (['optimizer', 'state', 0, 'exp_avg'], torch.ones(3), 'exp_avg is no tensor of shape ('),
        (['optimizer', 'state', 0, 'exp_avg'], 'text', 'exp_avg is no tensor of shape ('),
    ],
)
def test_malformed(keys, value, words, written, cfg, model):
    content = copy.deepcopy(written)
    *path, last = keys
    place = content
    for key in path:
        place = place[key]
    place[last] = value
    assert words in fault(content, cfg, model)


def test_states_with_nan(written, cfg, model):
    content = copy.deepcopy(written)
    content['optimizer']['state'][3]['exp_avg'].view(-1)[0] = torch.nan
    assert 'exp_avg has NaN or infinite values' in fault(content, cfg, model)


@pytest.mark.parametrize('history', [None, np.zeros((2, 2)), np.zeros(3), np.array(['a', 'b'])])
def test_broken_logs(history, written, cfg, model):
    content = copy.deepcopy(written)
    content['message_hub']['log_scalars']['train/loss']._log_history = history
    assert "broken log of 'train/loss'" in fault(content, cfg, model)


@pytest.mark.parametrize('before, after, lost', [('AdamW', 'SGD', 'momentum'), ('SGD', 'AdamW', 'betas')])
def test_another_optimizer(before, after, lost, cfg, model):
    message = fault(trained(with_optimizer(cfg, before)), with_optimizer(cfg, after), model)
    assert f"its optimizer is of another kind than the config's {after}, it has no " in message and lost in message


def test_iterations_after_the_end(written, cfg, model):
    changed = copy.deepcopy(cfg)
    changed.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3)
    assert 'its meta.iter is 4, and the training ends at train_cfg.max_iters=3' in fault(written, changed, model)


def test_what_was_written_is_read(written, tmp_path):
    torch.save(written, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['meta'] == written['meta']

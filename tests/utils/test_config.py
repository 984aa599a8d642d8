"""Configs as the tools read them: where the data is, and overrides of the command line."""

import pytest
from mmengine.model import KaimingInit, PretrainedInit

from conftest import CONFIGS
from se_mm.utils import InputError
from se_mm.utils.config import is_pretrained, load_config

DETECTOR = CONFIGS / 'faster_rcnn_se_r50_coco.py'
LOADERS = [f'{split}_dataloader' for split in ('train', 'val', 'test')]


def roots(cfg):
    return [cfg[loader].dataset.data_root for loader in LOADERS]


@pytest.fixture
def derived(tmp_path):
    """A config file that inherits from the detector's."""

    def write(text, base=DETECTOR):
        path = tmp_path / f'{len(list(tmp_path.iterdir()))}.py'
        path.write_text(f'_base_ = {str(base)!r}\n{text}\n')
        return path

    return write


def test_data_root_of_the_command_line_moves_all_data():
    cfg = load_config(DETECTOR, {'data_root': '/d/coco/'})
    assert roots(cfg) == ['/d/coco/'] * 3 and cfg.data_root == '/d/coco/'
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == '/d/coco/annotations/instances_val2017.json'
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'


@pytest.mark.parametrize('name', ['r50_places365', 'r50_imagenet', 'se_wrn16_8_cifar10', 'se_r18_svhn'])
def test_data_root_of_classifiers(name):
    """Also where the config has none at the top."""
    (path,) = CONFIGS.rglob(f'{name}.py')
    assert [root.rstrip('/') for root in roots(load_config(path, {'data_root': '/d'}))] == ['/d'] * 3


def test_other_options_go_before_data_root():
    options = {'data_root': '/d', 'val_dataloader.dataset.data_root': '/v', 'val_evaluator.ann_file': '/v/a.json'}
    for given in (options, dict(reversed(options.items()))):
        cfg = load_config(DETECTOR, given)
        assert [root.rstrip('/') for root in roots(cfg)] == ['/d', '/v', '/d']
        assert cfg.val_evaluator.ann_file == '/v/a.json'
        assert cfg.test_evaluator.ann_file == '/d/annotations/instances_val2017.json'


def test_data_root_of_a_derived_config_moves_all_data(derived):
    path = derived("data_root = '/d/coco'")
    cfg = load_config(path)
    assert roots(cfg) == ['/d/coco/'] * 3
    assert cfg.test_evaluator.ann_file == '/d/coco/annotations/instances_val2017.json'
    assert load_config(derived('', path)).val_dataloader.dataset.data_root == '/d/coco/'
    assert roots(load_config(derived("data_root = '/e'", path))) == ['/e/'] * 3
    assert roots(load_config(path, {'data_root': '/f'})) == ['/f/'] * 3


def test_data_that_a_derived_config_places_itself_stays(derived):
    """Its data_root is a variable then, as MMEngine means it."""
    train = "data_root = '/d/'\ntrain_dataloader = dict(dataset=dict(data_root=data_root))"
    assert roots(load_config(derived(train))) == ['/d/', 'data/coco/', 'data/coco/']
    every = '\n'.join(f"{loader} = dict(dataset=dict(data_root='/d/'))" for loader in LOADERS)
    assert roots(load_config(derived(every))) == ['/d/'] * 3
    assert roots(load_config(derived(f"data_root = '/unused/'\n{every}"))) == ['/d/'] * 3


def test_data_of_several_roots_is_not_moved(derived):
    path = derived("train_dataloader = dict(dataset=dict(data_root='/d/'))")
    with pytest.raises(
        InputError, match=r'data_root=/e: the data sets of .* are in /d and data/coco: set data_root of'
    ):
        load_config(path, {'data_root': '/e'})


def test_overrides_of_lists_and_of_dicts_with_numbers(derived):
    path = derived('numbers = {"3": dict(x=1)}\nhooks = [dict(x=1)]')
    cfg = load_config(path, {'numbers.3.x': 2, 'hooks.0.x': 2, 'more': [dict(x=2)]})
    assert cfg.numbers['3'].x == cfg.hooks[0].x == cfg.more[0]['x'] == 2


@pytest.mark.parametrize(
    'key, words',
    [
        ('custom_hooks.0.type', 'custom_hooks is no list, give it as a whole: custom_hooks='),
        ('train_cfg.3.x', 'train_cfg is no list'),
        ('param_scheduler.7.end', 'Index 7 exceeds the length of list'),
        ('data_root.x', 'cannot inherit'),
    ],
)
def test_overrides_that_do_not_fit(key, words):
    with pytest.raises(InputError) as error:
        load_config(DETECTOR, {key: 1})
    assert words in str(error.value) and '--cfg-options' in str(error.value)


def test_pretrained_weights_of_dumped_configs():
    """MMEngine dumps a class with its module."""
    for kind in ('Pretrained', 'mmengine.Pretrained', 'mmengine.model.PretrainedInit', PretrainedInit):
        assert is_pretrained(dict(type=kind, checkpoint='a.pth'))
    for cfg in (None, dict(), dict(type='Kaiming'), dict(type='mmengine.model.KaimingInit'), dict(type=KaimingInit)):
        assert not is_pretrained(cfg)

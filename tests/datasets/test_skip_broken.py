import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import DataLoader

from conftest import CONFIGS, TOOLS
from se_mm.datasets.checks import check_dataset
from se_mm.datasets.skip_broken import BrokenImageError, replaced, skip_broken

CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'
PIPELINE = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.CenterCrop', crop_size=64),
    dict(type='mmpretrain.PackInputs'),
]


@pytest.fixture
def root(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / 'places')


@pytest.fixture
def record(tmp_path):
    return tmp_path / 'work' / 'broken_images.txt'


def build(root, record, limit, pipeline=PIPELINE):
    init_default_scope('mmpretrain')
    config = dict(type='se_mm.Places365', data_root=str(root), pipeline=pipeline)
    return DATASETS.build(skip_broken(config, limit, str(record)))


def break_images(dataset, *indices):
    """Each in another way: no image, cut off, missing."""
    paths = []
    for i, index in enumerate(indices):
        path = dataset.get_data_info(index)['img_path']
        content = open(path, 'rb').read()
        with open(path, 'wb') as file:
            file.write([b'not an image', content[: len(content) // 2]][i % 2])
        paths.append(path)
    return paths


@pytest.mark.parametrize('workers', [0, 2])
def test_the_next_images_stand_in(root, record, workers):
    dataset = build(root, record, limit=3)
    expected = [dataset[i]['inputs'].numpy() for i in range(len(dataset))]
    paths = break_images(dataset, 4, 5, 31)
    for i, after in ((4, 6), (5, 6), (31, 0)):
        expected[i] = expected[after]
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    for _ in range(2):
        assert all(np.array_equal(a, b['inputs']) for a, b in zip(expected, loader, strict=True))
    assert sorted(replaced(record)) == sorted(paths)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('limit', [0, 1])
def test_one_more_is_one_line(root, record, workers, limit):
    dataset = build(root, record, limit)
    paths = break_images(dataset, *([4, 9] if limit else [4]))
    with pytest.raises(BrokenImageError) as error:
        list(DataLoader(dataset, batch_size=None, num_workers=workers))
    message = str(error.value)
    assert '\n' not in message and any(path in message for path in paths)
    assert f'--skip-broken {limit + 1}' in message
    assert len(replaced(record)) == limit


def test_other_errors_stay(root, record):
    dataset = build(root, record, 5, [PIPELINE[0], lambda info: info['no such key']])
    with pytest.raises(RuntimeError, match='no such key'):  # as Places365 says it
        dataset[0]
    assert not record.exists()


def test_stands_for_its_data_set(root, record):
    """For hooks, samplers, wrappers and workers that are spawned."""
    dataset = build(root, record, limit=1)
    assert dataset.metainfo['classes'] and len(dataset) == 32 and dataset.get_data_info(5)['gt_label'] == 1
    dataset = pickle.loads(pickle.dumps(dataset))
    dataset.pipeline = lambda info: info['gt_label']
    assert dataset[5] == 1
    config = dict(
        type='RepeatDataset', times=2, dataset=dict(type='se_mm.Places365', data_root=str(root), pipeline=PIPELINE)
    )
    both = DATASETS.build(skip_broken(dict(type='ConcatDataset', datasets=[config, config]), 1, str(record)))
    assert len(both) == 4 * 32
    (path,) = break_images(dataset, 3)
    assert np.array_equal(both[3 + 64]['inputs'], both[4]['inputs']) and replaced(record) == [path]


def test_training_tool(run, scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / 'places')
    image = root / 'data_256/d/desert/sand/00000002.jpg'
    check_dataset(dict(type='se_mm.Places365', data_root=str(root)))
    time = image.stat().st_mtime_ns
    image.write_bytes(b'x' * image.stat().st_size)
    os.utime(image, ns=(time, time))  # breaks after the check
    command = [sys.executable, TOOLS / 'train.py', CLASSIFIER, '--work-dir', 'work']
    options = ['--cfg-options', f'data_root={root}', 'train_cfg.max_epochs=1', 'train_dataloader.num_workers=2']
    code, output = run(*command, *options)
    last = output.strip().splitlines()[-1]
    assert code == 1 and 'Traceback' not in output and f'image {image} is broken' in last and '--skip-broken 1' in last
    code, output = run(*command, '--skip-broken', 1, *options)
    assert code == 0 and f'1 broken images were replaced by others, see work/broken_images.txt: {image}' in output
    code, output = run(*command, '--skip-broken', -1)
    assert code == 1 and 'expected 0 or more' in output

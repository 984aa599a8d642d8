"""The analysis of gates, as a user runs it."""

import csv
import json
import os
import re
import signal
import sys
import time
from base64 import b64decode

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CONFIGS, TOOLS
from se_mm.utils.config import build_model, load_config, use_scope

TOOL = TOOLS / 'analyze_excitation.py'
CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'
DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
SMALL = f"""
_base_ = {str(CLASSIFIER)!r}
model = dict(
    backbone=dict(stem_channels=8, base_channels=8, se_ratio=4, zero_init_residual=False), head=dict(in_channels=64)
)
test_dataloader = dict(batch_size=3)
"""


@pytest.fixture
def small(tmp_path):
    """A small classifier's config and checkpoint."""
    (tmp_path / 'small.py').write_text(SMALL)
    return save('small.py', tmp_path)


def save(config, folder, seed=0):
    """Random weights of a config's model; returns the arguments of the tool."""
    torch.manual_seed(seed)
    cfg = load_config(folder / config)
    use_scope(cfg)
    model = build_model(cfg)
    model.init_weights()
    path = folder / f'seed{seed}.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return [folder / config, path]


def data(root, *more):
    return ['--cfg-options', f'data_root={root}', *more]


def test_everything_is_written(run, small, scenes, tmp_path):
    code, output = run(sys.executable, TOOL, *small, '--worth-images', 10, '--out-dir', 'out', *data(scenes))
    assert code == 0, output
    folder = tmp_path / 'out'
    names = ['small_classes', 'small_spread', 'small_worth', 'profile']
    expected = {f'{name}.{kind}' for name in names for kind in ('png', 'svg')}
    assert {path.name for path in folder.iterdir()} == expected | {
        'small.npz', 'small.csv', 'excitation.json', 'excitation.html',
    }  # fmt: skip
    for name in names:
        assert min(Image.open(folder / f'{name}.png').size) > 200
    arrays = np.load(folder / 'small.npz')
    assert arrays['SE_2_1/count'][0] == 16 and arrays['SE_2_1/count'][1:].sum() == 16
    assert arrays['SE_5_2/mean'].shape == (9, 64)
    rows = list(csv.DictReader((folder / 'small.csv').open()))
    assert [row['name'] for row in rows] == [f'SE_{stage}_{block}' for stage in range(2, 6) for block in (1, 2)]
    assert float(rows[0]['mean']) == pytest.approx(arrays['SE_2_1/mean'][0].mean())
    (numbers,) = json.loads((folder / 'excitation.json').read_text())
    assert numbers['images'] == 16 and numbers['evaluated_images'] == 10 and len(numbers['replacements']) == 45
    page = (folder / 'excitation.html').read_text()
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == 4 and all(b64decode(picture).startswith(b'<?xml') for picture in pictures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert all(f'<th>{row["name"]}</th><td class="{row["role"]}">' in page for row in rows)


@pytest.mark.slow
def test_two_processes_see_what_one_sees(run, small, scenes, tmp_path, free_port):
    options = [*small, '--no-worth', '--images-per-class', 1]
    assert run(sys.executable, TOOL, *options, '--out-dir', 'one', *data(scenes))[0] == 0
    launch = ['torchrun', '--nproc_per_node=2', f'--master_port={free_port}', TOOL]
    code, output = run(*launch, *options, '--launcher', 'pytorch', '--out-dir', 'two', *data(scenes))
    assert code == 0, output
    one, two = (np.load(tmp_path / name / 'small.npz') for name in ('one', 'two'))
    assert one.files == two.files and 4 < one['SE_2_1/count'][0] <= 8
    for name in one.files:
        if one[name].dtype.kind == 'f':
            np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-9)  # batches differ, and so do sums
        else:
            assert (two[name] == one[name]).all()


def test_detector_and_groups(run, shapes, tmp_path):
    arguments = save(DETECTOR, tmp_path)
    names = sorted(path.name for path in (shapes / 'val').iterdir())
    (tmp_path / 'groups.csv').write_text('image,group\n' + ''.join(f'{name},first\n' for name in names[:3]))
    options = ['--groups', 'groups.csv', '--worth-images', 2, '--layers', 'SE_2_1', 'SE_5_2', '--out-dir', 'out']
    code, output = run(sys.executable, TOOL, *arguments, *options, *data(shapes))
    assert code == 0, output
    arrays = np.load(tmp_path / 'out' / f'{DETECTOR.stem}.npz')
    groups = arrays['groups'].tolist()
    assert groups[:5] == ['all', 'circle', 'square', 'triangle', 'no object'] and groups[-1] == 'first'
    content = json.loads((shapes / 'annotations' / 'val.json').read_text())
    for i, category in enumerate(('circle', 'square', 'triangle'), 1):
        images = {item['image_id'] for item in content['annotations'] if item['category_id'] == i}
        assert arrays['SE_2_1/count'][groups.index(category)] == len(images)
    numbers = [sum(item['image_id'] == image['id'] for item in content['annotations']) for image in content['images']]
    assert arrays['SE_2_1/count'][groups.index('2 to 4 objects')] == sum(2 <= number <= 4 for number in numbers)
    assert arrays['SE_2_1/count'][-1] == 3
    (found,) = json.loads((tmp_path / 'out' / 'excitation.json').read_text())
    assert found['score'] == 'AP' and [row['name'] for row in found['layers']] == ['SE_2_1', 'SE_5_2']
    assert 'is no better than chance' in (tmp_path / 'out' / 'excitation.html').read_text()


def test_two_networks_on_a_page(run, small, scenes, tmp_path):
    other = save('small.py', tmp_path, seed=1)
    options = ['--compare', *other, '--no-worth', '--classes', 'mountain', '--out-dir', 'out']
    code, output = run(sys.executable, TOOL, *small, *options, *data(scenes))
    assert code == 0, output
    first, second = json.loads((tmp_path / 'out' / 'excitation.json').read_text())
    assert (first['network'], second['network']) == ('small seed0', 'small seed1')
    assert first['layers'] != second['layers']
    assert 'Gates of small seed0 and small seed1' in (tmp_path / 'out' / 'excitation.html').read_text()


def test_mistakes_are_one_line(run, small, scenes, tmp_path):
    plain = save(CONFIGS / 'quickstart' / 'r18_scenes.py', tmp_path, seed=2)
    (tmp_path / 'groups.csv').write_text('image,group\nnone.jpg,a\n')
    for arguments, words in (
        (plain, 'ImageClassifier has no SE layer'),
        ([small[0], plain[1]], 'seed2.pth'),
        ([*small, '--classes', 'kitchen'], 'class kitchen does not exist: choose of '),
        ([*small, '--layers', 'SE_9_9'], 'SE_9_9 is no SE layer: choose of SE_2_1, '),
        ([*small, '--num-images', 0], '--num-images 0: choose a whole number from 1'),
        ([*small, '--groups', 'groups.csv'], 'groups.csv: none.jpg is the end of 0 paths of the data set'),
        ([*small, '--low', 0.9], '--low 0.9 has to be below --high 0.9'),
    ):
        code, output = run(sys.executable, TOOL, *arguments, '--out-dir', 'out', *data(scenes))
        last = output.strip().splitlines()[-1]
        assert code == 1 and last.startswith('error: ') and words in last and 'Traceback' not in output, output
    assert not (tmp_path / 'out').exists()


def test_interrupt_writes_what_there_is(start, small, scenes, tmp_path):
    repeated = data(scenes, 'test_dataloader.batch_size=1', 'test_dataloader.dataset.indices=None')
    process = start(sys.executable, TOOL, *small, '--out-dir', 'out', '--split', 'train', *repeated)
    deadline = time.monotonic() + 100
    while not (tmp_path / 'out').exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode == 130
    assert 'The analysis was interrupted after ' in (tmp_path / 'out' / 'excitation.html').read_text()

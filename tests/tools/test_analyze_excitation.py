"""The analysis of gates, as a user runs it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from base64 import b64decode

import numpy as np
import pytest
import torch
import torch.distributed.run
from PIL import Image

from conftest import CONFIGS, TOOLS
from se_mm.analysis.gates import weights_digest
from se_mm.utils.config import build_model, load_config, use_scope
from work_dirs import many_scenes

TOOL = TOOLS / 'analyze_excitation.py'
LAUNCHER = [sys.executable, torch.distributed.run.__file__]  # torchrun, as a file that can be forked
CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'
DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
SMALL = f"""
_base_ = {str(CLASSIFIER)!r}
model = dict(
    backbone=dict(stem_channels=8, base_channels=8, se_ratio=4, zero_init_residual=False), head=dict(in_channels=64)
)
test_dataloader = dict(batch_size=3)
"""
SEVERAL = """
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = dict(
    dataset=dict(
        _delete_=True, type='MultiLabelDataset', ann_file='labels.json', data_root='',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
)
test_evaluator = dict(_delete_=True, type='MultiLabelMetric')
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
    """Two networks, their statistics, and what their gates are worth."""
    options = [*small, '--compare', *save('small.py', tmp_path, seed=1), '--worth-images', 7, '--layers', 'SE_5_2']
    assert run(sys.executable, TOOL, *options, '--out-dir', 'one', *data(scenes))[0] == 0
    launch = [*LAUNCHER, '--nproc_per_node=2', f'--master_port={free_port}', TOOL]
    code, output = run(*launch, *options, '--launcher', 'pytorch', '--out-dir', 'two', *data(scenes))
    assert code == 0, output
    for name in ('small seed0', 'small seed1'):
        one, two = (np.load(tmp_path / folder / f'{name}.npz') for folder in ('one', 'two'))
        assert one.files == two.files and one['SE_5_2/count'][0] == 16
        for key in one.files:
            if one[key].dtype.kind == 'f':
                np.testing.assert_allclose(
                    two[key], one[key], rtol=1e-6, atol=1e-7
                )  # float32 rounds other batches otherwise
            else:
                assert (two[key] == one[key]).all()
    one, two = (json.loads((tmp_path / folder / 'excitation.json').read_text()) for folder in ('one', 'two'))
    assert [network['evaluated_images'] for network in one] == [7, 7]
    for mine, other in zip(one, two):
        assert mine['replacements'] == other['replacements'] and mine['value'] == other['value']


@pytest.mark.slow
def test_process_with_one_image(run, small, scenes, tmp_path, free_port):
    """Gates of other images come from all processes."""
    launch = [*LAUNCHER, '--nproc_per_node=2', f'--master_port={free_port}', TOOL]
    options = ['--num-images', 3, '--layers', 'SE_5_2', '--out-dir', 'out', '--launcher', 'pytorch']
    code, output = run(*launch, *small, *options, *data(scenes))
    assert code == 0, output
    (numbers,) = json.loads((tmp_path / 'out' / 'excitation.json').read_text())
    assert numbers['evaluated_images'] == 3 and len(numbers['replacements']) == 3
    assert '3 images are too few to find gates of small idle or static' in output


def test_detector_and_groups(run, shapes, tmp_path):
    arguments = save(DETECTOR, tmp_path)
    names = sorted(path.name for path in (shapes / 'val').iterdir())
    rows = ''.join(f'{name},first\n' for name in names[:3])
    (tmp_path / 'groups.csv').write_text(f'image,group\n{rows}', encoding='utf-8-sig')  # as spreadsheets write it
    options = ['--groups', 'groups.csv', '--worth-images', 2, '--layers', 'SE_2_1', 'SE_5_2', '--out-dir', 'out']
    options += ['--channels-last']
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
    model = build_model(load_config(arguments[0]))
    model.load_state_dict(torch.load(arguments[1], weights_only=True)['state_dict'])
    assert found['weights_sha256'] == weights_digest(model) == str(arrays['weights'])
    assert found['score'] == 'AP' and [row['name'] for row in found['layers']] == ['SE_2_1', 'SE_5_2']
    assert 'is no better than chance' in (tmp_path / 'out' / 'excitation.html').read_text()


def test_two_networks_on_a_page(run, small, scenes, tmp_path):
    """Of different depth and with different classes, and checkpoints of one name."""
    (tmp_path / 'deeper').mkdir()
    (tmp_path / 'deeper' / 'small.py').write_text(
        f'_base_ = {str(small[0])!r}\n'
        'model = dict(backbone=dict(depth=34))\n'
        'test_dataloader = dict(dataset=dict(indices=[0, 1, 2]))\n'
    )
    config, _ = save('deeper/small.py', tmp_path)
    other = [config, tmp_path / 'deeper' / 'seed0.pth']
    (tmp_path / 'seed0.pth').rename(other[1])
    small = save('small.py', tmp_path)
    options = ['--compare', *other, '--no-worth', '--out-dir', 'out', '--images-per-class', 1]
    code, output = run(sys.executable, TOOL, *small, *options, *data(scenes))
    assert code == 0, output
    first, second = json.loads((tmp_path / 'out' / 'excitation.json').read_text())
    assert (first['network'], second['network']) == (f'small {tmp_path.name}/seed0', 'small deeper/seed0')
    assert len(first['layers']) == 8 and len(second['layers']) == 16
    assert 4 < first['images'] <= 8 and second['images'] <= 3  # and classes of the first are not in the second
    assert (tmp_path / 'out' / 'small deeper%2Fseed0_classes.png').exists()
    code, output = run(sys.executable, TOOL, *small, '--compare', *small, *data(scenes))
    assert code == 1 and 'error: --compare names the network that the command begins with' in output


def test_data_in_parts(run, small, scenes, tmp_path):
    """All parts of wrapped data sets are looked at, prepared as for the test."""
    parts = 'test_dataloader.dataset'
    (tmp_path / 'parts.py').write_text(
        f'_base_ = {str(small[0])!r}\n'
        f'part = {{{{_base_.{parts}}}}}\n'
        "train_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[part, part]))\n"
    )
    options = ['--split', 'train', '--no-worth', '--out-dir', 'out']
    code, output = run(sys.executable, TOOL, 'parts.py', small[1], *options, *data(scenes))
    assert code == 0, output
    assert json.loads((tmp_path / 'out' / 'excitation.json').read_text())[0]['images'] == 32


def test_mistakes_are_one_line(run, small, scenes, tmp_path):
    plain = save(CONFIGS / 'quickstart' / 'r18_scenes.py', tmp_path, seed=2)
    for name, rows in dict(groups='none.jpg,a', incomplete='none.jpg', rows='').items():
        (tmp_path / f'{name}.csv').write_text(f'image,group\n{rows}\n')
    missing, empty = tmp_path / 'missing.py', tmp_path / 'empty.py'
    (tmp_path / 'empty.txt').write_text('')
    for config, name in ((missing, 'nowhere.txt'), (empty, str(tmp_path / 'empty.txt'))):
        config.write_text(
            f'_base_ = {str(small[0])!r}\n'
            f'dataset = dict(_delete_=True, type="CustomDataset", ann_file={name!r}, data_root="", pipeline=[])\n'
            'train_dataloader = dict(dataset=dataset)\n'
        )
    for arguments, words in (
        (plain, 'ImageClassifier has no SE layer'),
        ([small[0], plain[1]], 'seed2.pth'),
        ([*small, '--classes', 'kitchen'], 'class kitchen does not exist: choose of '),
        ([*small, '--layers', 'SE_9_9'], 'SE_9_9 is no SE layer: choose of SE_2_1, '),
        ([*small, '--num-images', 0], '--num-images 0: choose a whole number from 1'),
        ([*small, '--groups', 'groups.csv'], 'groups.csv: none.jpg is the end of 0 paths of the data set'),
        ([*small, '--groups', 'incomplete.csv'], 'incomplete.csv: give an image and its group in every row'),
        ([*small, '--groups', 'rows.csv'], 'rows.csv: give an image and its group in every row, and at least one row'),
        ([*small, '--low', 0.9], '--low 0.9 has to be below --high 0.9'),
        ([*small, '--worth-images', 1], '--worth-images 1: gates of other images need at least 2 images'),
        ([missing, small[1], '--split', 'train'], 'nowhere.txt'),
        ([empty, small[1], '--split', 'train'], 'empty.txt'),
        ([*small, '--split', 'val', '--cfg-options', 'val_dataloader=None'], 'small.py has no val_dataloader'),
    ):
        code, output = run(sys.executable, TOOL, *arguments, '--out-dir', 'out', *data(scenes))
        last = output.strip().splitlines()[-1]
        assert code == 1 and last.startswith('error: ') and words in last and 'Traceback' not in output, output
    assert not (tmp_path / 'out').exists()


def many_images(tmp_path, small, scenes):
    (tmp_path / 'many.py').write_text(f'_base_ = {str(small[0])!r}\n{many_scenes(scenes)}')
    return [tmp_path / 'many.py', small[1]]


def interrupt_at(process, words, twice=False):
    """Ctrl-C as a terminal sends it, to all processes, when a bar has an estimate: images have gone through."""
    output = ''
    for moment in (rf'{words}[^\n]*\d:\d\d:\d\d', *(['ends after the current images'] if twice else [])):
        while not re.search(moment, output):
            chunk = os.read(process.stderr.fileno(), 4096)
            assert chunk, output
            output += chunk.decode()
        os.killpg(process.pid, signal.SIGINT)
    return output + process.communicate(timeout=100)[1]


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_interrupt_writes_what_there_is(forking, small, scenes, tmp_path, free_port, processes):
    program = [forking / 'python', TOOL]
    if processes > 1:
        program = [
            forking / 'python',
            *LAUNCHER[1:],
            f'--nproc_per_node={processes}',
            f'--master_port={free_port}',
            TOOL,
        ]
    launcher = ['--launcher', 'pytorch'] if processes > 1 else []
    command = [*program, *many_images(tmp_path, small, scenes), '--out-dir', 'out', *launcher, *data(scenes)]
    process = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {'FORCE_COLOR': '1'},
    )  # fmt: skip
    output = interrupt_at(process, 'many: gates')
    assert 'Traceback' not in output or processes > 1, output  # of the launcher
    assert process.returncode == (130 if processes == 1 else 1), output
    (numbers,) = json.loads((tmp_path / 'out' / 'excitation.json').read_text())
    assert 0 < numbers['images'] < 960
    remark = f'The analysis was interrupted after {numbers["images"]} images.'
    assert numbers['remarks'] == [remark] and remark in (tmp_path / 'out' / 'excitation.html').read_text()


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(forking, small, scenes, tmp_path):
    command = [forking / 'python', TOOL, *many_images(tmp_path, small, scenes), '--out-dir', 'out', *data(scenes)]
    process = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {'FORCE_COLOR': '1'},
    )  # fmt: skip
    output = interrupt_at(process, 'many: gates', twice=True)
    assert process.returncode == 130 and 'Traceback' not in output, output
    assert not (tmp_path / 'out' / 'excitation.html').exists()


@pytest.mark.slow
def test_interrupt_of_the_second_network(forking, small, scenes, tmp_path):
    """The first network stays as it is."""
    networks = [*small, '--compare', *many_images(tmp_path, small, scenes)]
    command = [forking / 'python', TOOL, *networks, '--layers', 'SE_5_2', '--out-dir', 'out', *data(scenes)]
    process = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {'FORCE_COLOR': '1'},
    )  # fmt: skip
    interrupt_at(process, 'many: gates')
    assert process.returncode == 130
    first, *others = json.loads((tmp_path / 'out' / 'excitation.json').read_text())
    assert first['images'] == 16 and len(first['replacements']) == 3 and first['verdicts']
    assert all(other['images'] < 960 for other in others)


def test_several_labels_an_image_are_not_judged(run, tmp_path):
    """Images with several labels count for each, and nobody can tell a top-1 error."""
    for number in range(4):
        Image.new('RGB', (32, 32), (60 * number, 0, 0)).save(tmp_path / f'{number}.png')
    items = [dict(img_path=f'{number}.png', gt_label=[number % 3, 2][: 1 + number % 2]) for number in range(4)]
    (tmp_path / 'labels.json').write_text(json.dumps(dict(metainfo={}, data_list=items)))
    (tmp_path / 'several.py').write_text(SMALL + SEVERAL)
    arguments = save('several.py', tmp_path)
    code, output = run(sys.executable, TOOL, *arguments, '--out-dir', 'out')
    assert code == 0, output
    assert 'The gates of several are not judged.' in output
    arrays = np.load(tmp_path / 'out' / 'several.npz')
    assert arrays['groups'].tolist() == ['all', '0', '1', '2']
    assert arrays['SE_2_1/count'].tolist() == [4, 2, 1, 3]

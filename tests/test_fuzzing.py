"""Random changes of the files that are read: each file is refused in one line or read, within bounds of memory.

FUZZ_EXAMPLES=20000 tries more than the usual number of each kind.
"""

import copy
import json
import os
import pickle
import resource
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import DATASETS
from safetensors.torch import save_file

from foreign_files import write_mxnet
from se_mm.datasets.checks import check_dataset
from se_mm.datasets.drawn import write_scenes, write_shapes
from se_mm.utils import InputError
from se_mm.weights import read_checkpoint

PLACES = 'places365_train_standard.txt'
SETTINGS = settings(
    max_examples=int(os.environ.get('FUZZ_EXAMPLES', 100)),
    derandomize=True,  # the same cases in every run
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.one_of(st.integers(-3, 200), st.integers(), st.floats(), st.booleans())
VALUES = st.recursive(
    st.one_of(
        st.none(), NUMBERS, st.text(max_size=8), st.sampled_from(['../up.png', '/etc/passwd', 'train', '00000.png'])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)


def places_in(node, path=()):
    """Paths of all parts of JSON data."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places_in(value, (*path, key))


@st.composite
def changed_json(draw, content):
    """Data with up to three parts replaced, left out or doubled."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places_in(content))))
        if not path:
            return draw(VALUES)
        node = content
        for key in path[:-1]:
            node = node[key]
        change = draw(st.sampled_from(['replace', 'leave out', 'double']))
        if change == 'replace':
            node[path[-1]] = draw(VALUES)
        elif change == 'leave out':
            del node[path[-1]]
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[path[-1]]))
    return content


@st.composite
def changed_bytes(draw, content):
    """Bytes with up to three runs overwritten, left out or put in, or an end cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        run = draw(st.binary(max_size=9))
        change = draw(st.sampled_from(['overwrite', 'leave out', 'put in', 'cut', 'zeros']))
        if change == 'cut':
            del content[at:]
        elif change == 'zeros':
            content[at : at + 64] = bytes(min(64, len(content) - at))
        else:
            end = at + (0 if change == 'put in' else len(run))
            content[at:end] = b'' if change == 'leave out' else run
    return bytes(content)


def read_or_refused(read, *arguments):
    """What was read, or None if it was refused as it should be."""
    try:
        return read(*arguments)
    except InputError as error:
        assert '\n' not in str(error) and len(str(error)) < 1000
        return None


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB


@pytest.fixture(scope='module')
def boxes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('fuzzed') / 'shapes', train=4, val=1)


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp('fuzzed') / 'scenes', train=1, val=1)


def check_annotations(root, content):
    path = root / 'annotations' / 'train.json'
    path.write_bytes(content)
    dataset = dict(
        type='mmdet.CocoDataset',
        data_root=str(root),
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=('circle', 'square', 'triangle')),
        pipeline=[],
    )
    if read_or_refused(check_dataset, dataset, True):  # as the only data of a training
        loaded = DATASETS.build(dataset)  # what is not refused is read by mmdet
        infos = map(loaded.get_data_info, range(len(loaded)))
        boxes = [instance['bbox'] for info in infos for instance in info['instances']]
        assert boxes and all(left < right and top < bottom for left, top, right, bottom in boxes)


@pytest.fixture(scope='module')
def annotations(boxes):
    return (boxes / 'annotations' / 'train.json').read_bytes()


@SETTINGS
@given(data=st.data())
def test_annotations_with_other_values(boxes, annotations, data):
    content = data.draw(changed_json(json.loads(annotations)))
    check_annotations(boxes, json.dumps(content).encode())


@SETTINGS
@given(data=st.data())
def test_annotations_with_other_bytes(boxes, annotations, data):
    check_annotations(boxes, data.draw(changed_bytes(annotations)))


@SETTINGS
@given(data=st.data())
def test_lists(places, data):
    path = places / PLACES
    backup = places / 'list.txt'
    if not backup.exists():
        shutil.copy(path, backup)
    path.write_bytes(data.draw(changed_bytes(backup.read_bytes())))
    dataset = dict(type='se_mm.Places365', data_root=str(places), pipeline=[])
    if read_or_refused(check_dataset, dataset):
        loaded = DATASETS.build(dataset)
        assert all(0 <= info['gt_label'] < 8 for info in map(loaded.get_data_info, range(len(loaded))))


@cache  # torch's old format has addresses of memory, so that no two files are of one length
def weights_file(kind):
    tensors = {f'layer{i}.weight': torch.arange(12.0).reshape(3, 4) + i for i in range(3)}
    path = Path(tempfile.mkdtemp()) / f'weights.{kind}'
    if kind == 'safetensors':
        save_file(tensors, path)
    elif kind == 'params':
        write_mxnet(tensors, path)
    elif kind == 'pdparams':
        path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in tensors.items()}, protocol=2))
    else:
        torch.save(dict(meta=dict(epoch=1), state_dict=tensors), path, _use_new_zipfile_serialization=kind == 'pth')
    content = path.read_bytes()
    shutil.rmtree(path.parent)
    return tensors, content


@pytest.mark.parametrize('kind', ['pth', 'old.pth', 'safetensors', 'params', 'pdparams'])
@SETTINGS
@given(data=st.data())
def test_checkpoints(tmp_path, kind, data):
    tensors, content = weights_file(kind)
    path = tmp_path / f'weights.{kind}'
    path.write_bytes(data.draw(changed_bytes(content)))
    before = peak_memory()
    content = read_or_refused(read_checkpoint, path)
    assert peak_memory() - before < 64
    if content:
        assert all(isinstance(tensor, torch.Tensor) for tensor in content['state_dict'].values())
        if kind == 'pth':  # has checksums
            known = [tensor for name, tensor in content['state_dict'].items() if name in tensors]
            assert all(any(torch.equal(tensor, other) for other in tensors.values()) for tensor in known)

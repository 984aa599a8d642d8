"""Lists of images, of Places365 and of mmpretrain's data sets."""

import gzip
import shutil

import pytest

from se_mm.datasets.checks import check_dataset
from se_mm.utils import InputError

PLACES = 'places365_train_standard.txt'
LINE = '/d/desert/sand/00000001.jpg 0'


@pytest.fixture
def root(scenes, tmp_path):
    """Places365, and its training images and list where mmpretrain's ImageNet looks for them."""
    root = shutil.copytree(scenes, tmp_path / 'places')
    (root / 'meta').mkdir()
    (root / 'meta' / 'train.txt').write_text((root / PLACES).read_text().replace('/', '', 1).replace('\n/', '\n'))
    (root / 'data_256').rename(root / 'train')
    (root / 'data_256').symlink_to('train')
    return root


def dataset(root, kind):
    if kind == 'places':
        return dict(type='se_mm.Places365', data_root=str(root)), root / PLACES
    config = dict(
        type='mmpretrain.ImageNet',
        data_root=str(root),
        split='train',
        metainfo=dict(classes=[*'abcdefgh']),
        pipeline=[],
    )
    return config, root / 'meta' / 'train.txt'


KINDS = pytest.mark.parametrize('kind', ['places', 'imagenet'])


@KINDS
def test_a_good_list_passes(root, kind):
    check_dataset(dataset(root, kind)[0])


@KINDS
@pytest.mark.parametrize(
    'encode, words',
    [
        (lambda text: text.encode('utf-16'), 'is UTF-16'),
        (lambda text: text.encode('utf-16-be'), 'zero bytes'),
        (lambda text: text.encode('utf-8-sig'), 'byte order mark'),
        (lambda text: b'\xfc' + text.encode(), 'not UTF-8 text (line 1, byte 0xfc)'),
        (lambda text: gzip.compress(text.encode()), 'compressed by gzip'),
        (lambda text: text.encode() + b'/d/desert/sand/x.jpg\n', 'line 33: expected "<path> <number>"'),
        (lambda text: text.encode() + b'd/desert/sand/x.jpg 1.5\n', 'line 33: expected'),
        (lambda text: text.encode() + b'd/desert/sand/x.jpg -1\n', 'line 33: expected'),
        (lambda text: text.encode() + 'd/desert/sand/x.jpg ²\n'.encode(), 'line 33: expected'),
        (lambda text: text.encode() + b'd/desert/sand/x.jpg ' + b'9' * 5000, 'line 33: expected'),
        (lambda text: text.encode() + b'/d/../sand/x.jpg 0', 'leaves the folder'),
        (lambda text: text.encode() + b'/d/desert/sand/x.jpg 8', 'line 33'),
        (lambda text: text.encode() + b'9' * 5000 + b' 0', 'line 33: expected'),
        (lambda text: b'', 'is empty'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_damage_is_one_line(root, kind, encode, words):
    config, path = dataset(root, kind)
    path.write_bytes(encode(path.read_text()))
    with pytest.raises(InputError) as error:
        check_dataset(config)
    message = str(error.value)
    assert str(path) in message and words in message and '\n' not in message and len(message) < 600, message


@KINDS
def test_a_list_that_is_no_file(root, kind):
    config, path = dataset(root, kind)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match='is a folder or a pipe'):
        check_dataset(config)


def test_folders_instead_of_a_list(root):
    config = dataset(root, 'imagenet')[0]
    shutil.rmtree(root / 'meta')
    config['data_prefix'] = 'train/d'
    config['metainfo'] = None
    with pytest.raises(InputError, match='classes'):
        check_dataset(config)  # one folder, a thousand classes
    config['metainfo'] = dict(classes=['desert'])
    check_dataset(config)
    shutil.rmtree(root / 'train' / 'd' / 'desert' / 'sand')
    with pytest.raises(InputError, match='Found 0 files'):
        check_dataset(config)

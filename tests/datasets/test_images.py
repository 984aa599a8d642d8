import json
import logging
import os
import shutil

import numpy as np
import pytest
from mmengine.logging import MMLogger
from PIL import Image

from se_mm.datasets import images
from se_mm.datasets.checks import check_dataset
from se_mm.datasets.images import Cache, check_images, image_size
from se_mm.utils import InputError

KINDS = ('jpg', 'png', 'gif', 'bmp', 'webp')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten images of noise of each kind, and a cache of their own."""
    monkeypatch.setenv('SE_MM_CACHE', str(tmp_path / 'cache'))
    generator = np.random.default_rng(0)
    folder = tmp_path / 'images'
    folder.mkdir()
    for kind in KINDS:
        for i in range(10):
            pixels = generator.integers(0, 256, (24, 40 + i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{i}.{kind}')
    return folder


def names(folder):
    return sorted(str(path) for path in folder.iterdir())


def test_sizes(folder):
    sizes = check_images(names(folder), str(folder))
    assert len(sizes) == 50
    assert all(size == Image.open(path).size for path, size in sizes.items())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('kept', [0.99, 0.7, 0.3])
def test_truncated(folder, kind, kept):
    path = folder / f'3.{kind}'
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=rf'1 of 50 images of .* broken: .*/3\.{kind} \(.*cut off\): copy'):
        check_images(names(folder), str(folder))


def test_truncated_with_a_whole_thumbnail(folder):
    """Whose end is not that of the image."""
    path = folder / '0.jpg'
    exif = b'Exif\0\0' + b'II*\0\x08\0\0\0\0\0\0\0\0\0' + (folder / '1.jpg').read_bytes()
    Image.open(path).copy().save(path, exif=exif, quality=95)
    assert image_size(str(path)) == (40, 24)
    content = path.read_bytes()
    path.write_bytes(content + bytes(1000))  # as some cameras do
    assert image_size(str(path)) == (40, 24)
    path.write_bytes(content[:-100] + bytes(1000))
    with pytest.raises(InputError, match='cut off'):
        image_size(str(path))


def header(width, height):
    """A PNG of this size, as far as its header says."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    size = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', size) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda path: path.write_bytes(b''), 'empty'),
        (lambda path: path.mkdir(), 'a folder'),
        (lambda path: os.mkfifo(path), 'a pipe or device'),
        (lambda path: path.symlink_to('nowhere'), 'missing'),
        (lambda path: path.write_bytes(b'<html>'), "no image, begins with b'<htm'"),
        (lambda path: path.write_bytes(b'\xff\xd8' + bytes(100)), 'no image, or its header is damaged'),
        (lambda path: path.write_bytes(header(40000, 40000)), '40000x40000 pixels, more than OpenCV reads'),
        (lambda path: path.write_bytes(header(20000, 1)), '20000x1 pixels, resizing leaves nothing'),
        (lambda path: path.write_bytes(header(0, 5)), 'no image, or its header is damaged'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_broken_files_are_named(folder, make, words):
    path = folder / '4.jpg'
    path.unlink()
    make(path)
    with pytest.raises(InputError) as error:
        check_images(names(folder), str(folder), skippable=0)
    assert f'1 of 50 images of {folder} are missing or broken: {path} ({words}' in str(error.value)
    assert '--skip-broken 1' in str(error.value)
    check_images(names(folder), str(folder), skippable=1)


def test_many_broken_files_are_counted(folder):
    for i in range(9):
        (folder / f'{i}.jpg').write_bytes(b'')
    with pytest.raises(
        InputError, match=r'9 of 50 images .*/0.jpg \(empty\), .*/1.jpg \(empty\), .*/2.jpg .*, \.\.\.: '
    ) as e:
        check_images(names(folder), str(folder))
    assert '3.jpg' not in str(e.value)


def test_strange_sizes_are_a_warning(folder, caplog):
    (folder / '0.png').write_bytes(header(30000, 30000))
    (folder / '1.png').write_bytes(header(1, 1))
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    check_images(names(folder), str(folder))
    logger.removeHandler(caplog.handler)
    assert '2 of 50 images have strange sizes: ' in caplog.text and '(30000x30000)' in caplog.text


def test_other_kinds_are_left_to_their_loaders(folder):
    np.save(folder / 'a.npy', np.zeros(3))
    assert len(check_images(names(folder), str(folder))) == 50


def test_only_new_and_changed_files_are_opened_again(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(images, 'image_size', lambda path: opened.append(path) or image_size(path))
    first = check_images(names(folder), str(folder))
    assert len(opened) == 50
    opened.clear()
    assert check_images(names(folder), str(folder)) == first and not opened
    shutil.copy(folder / '1.png', folder / '0.jpg')
    (folder / '2.png').write_bytes(b'')
    assert check_images(names(folder), str(folder), skippable=1)[str(folder / '0.jpg')] == (41, 24)
    assert opened == [str(folder / '0.jpg')]
    for damage in ('{', '[]', '{"version": 1}'):  # of the cache
        opened.clear()
        (file,) = (folder.parent / 'cache' / 'images').iterdir()
        file.write_text(damage)
        check_images(names(folder), str(folder), skippable=1)
        assert len(opened) == 49


def test_what_was_checked_before_an_interruption_is_kept(folder, monkeypatch):
    """And what is known of images of another folder with equal annotations."""
    other = folder.with_name('other')
    shutil.copytree(folder, other)
    check_images(names(other), 'list.txt')
    opened = []

    def look_until_ctrl_c(path):
        opened.append(path)
        if len(opened) == 30:
            raise KeyboardInterrupt
        return image_size(path)

    monkeypatch.setattr(images, 'CHUNK', 10)
    monkeypatch.setattr(images, 'THREADS', 1)
    monkeypatch.setattr(images, 'image_size', look_until_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        check_images(names(folder), 'list.txt')
    monkeypatch.setattr(images, 'image_size', lambda path: opened.append(path) or image_size(path))
    opened.clear()
    assert len(check_images(names(folder), 'list.txt')) == 50 and len(opened) == 30
    opened.clear()
    assert len(check_images(names(other), 'list.txt')) == 50 and not opened
    (cache,) = (folder.parent / 'cache' / 'images').iterdir()
    assert len(json.loads(cache.read_text())['images']) == 100
    shutil.rmtree(other)
    check_images(names(folder), 'list.txt')
    assert len(json.loads(cache.read_text())['images']) == 50


def test_a_cache_that_cannot_be_written_does_no_harm(folder, monkeypatch):
    monkeypatch.setenv('SE_MM_CACHE', '/proc/none')
    assert len(check_images(names(folder), str(folder))) == 50


def test_long_checks_say_how_far_they_are(folder, monkeypatch, caplog):
    monkeypatch.setattr(images, 'INTERVAL', 0)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        check_images(names(folder), str(folder))
    logger.removeHandler(caplog.handler)
    assert '50 of 50 images are checked' in caplog.text


def test_data_sets(shapes, scenes, tmp_path, caplog):
    """Every kind of data set has its images checked; COCO files also say how large they are."""
    shapes, scenes = shutil.copytree(shapes, tmp_path / 'shapes'), shutil.copytree(scenes, tmp_path / 'scenes')
    path = shapes / 'annotations' / 'train.json'
    content = json.loads(path.read_text())
    content['images'][2]['width'] = 99
    path.write_text(json.dumps(content))
    coco = dict(
        type='mmdet.CocoDataset',
        data_root=str(shapes),
        ann_file='annotations/train.json',
        data_prefix=dict(img='train'),
        metainfo=dict(classes=['square']),
    )
    places = dict(type='se_mm.Places365', data_root=str(scenes))
    folders = dict(type='mmpretrain.CustomDataset', data_root=str(scenes / 'data_256'))
    for dataset in (coco, places, folders):
        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        check_dataset(dataset)
        logger.removeHandler(caplog.handler)
    assert '1 of 16 images have another size than it says, the first is' in caplog.text
    for root in (shapes, scenes):
        image = next(root.rglob('*1.jpg'))
        image.write_bytes(image.read_bytes()[:-50])
    for image in (*shapes.rglob('train/*1.jpg'), *scenes.rglob('data_256/**/*1.jpg')):
        content = image.read_bytes()
        image.write_bytes(content[: len(content) // 2])
    for dataset in (coco, places, folders):
        with pytest.raises(InputError, match=r'1\.jpg \(cut off\)'):
            check_dataset(dataset)


def test_images_that_opencv_reads_are_not_refused(tmp_path):
    """Of another kind than the name says, and with something after the end."""
    Image.new('RGB', (50, 40)).save(tmp_path / 'a.tiff')
    (tmp_path / 'a.tiff').rename(tmp_path / 'a.jpg')
    assert image_size(str(tmp_path / 'a.jpg')) == (0, 0)
    Image.new('P', (50, 40)).save(tmp_path / 'a.gif')
    whole = (tmp_path / 'a.gif').read_bytes()
    (tmp_path / 'a.gif').write_bytes(whole + b'\r\n')
    assert image_size(str(tmp_path / 'a.gif')) == (50, 40)
    (tmp_path / 'a.gif').write_bytes(whole[:-20])
    with pytest.raises(InputError, match='cut off'):
        image_size(str(tmp_path / 'a.gif'))


def test_damaged_caches_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv('SE_MM_CACHE', str(tmp_path))
    path = Cache('list.txt').path
    path.parent.mkdir(parents=True)
    for content in ('[]', '{"version": 1, "images": []}', '{"version": 1}', 'x'):
        path.write_text(content)
        assert Cache('list.txt').known == {}

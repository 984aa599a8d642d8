import gzip
import json
import shutil

import pytest
from mmdet.datasets import CocoDataset
from mmengine.logging import MMLogger

from conftest import CONFIGS
from se_mm.datasets.checks import check_dataset
from se_mm.utils import InputError
from se_mm.utils.config import load_config, use_scope

CLASSES = ('circle', 'square', 'triangle')


@pytest.fixture
def root(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / 'shapes')


@pytest.fixture
def path(root):
    return root / 'annotations' / 'train.json'


@pytest.fixture
def content(path):
    return json.loads(path.read_text())


def check(root, alone=False, **changes):
    dataset = dict(
        type='mmdet.CocoDataset',
        data_root=str(root),
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
    return check_dataset(dataset | changes, alone)


def refused(root, path, content, *words, **changes):
    path.write_text(json.dumps(content) if isinstance(content, dict | list) else content)
    with pytest.raises(InputError) as error:
        check(root, **changes)
    message = str(error.value)
    assert '\n' not in message and len(message) < 600
    assert all(word in message for word in (str(path), *words)), message


def warned(root, path, content, caplog, *words, **changes):
    path.write_text(json.dumps(content))
    caplog.clear()
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        check(root, **changes)
    finally:
        logger.removeHandler(caplog.handler)
    text = '\n'.join(record.getMessage() for record in caplog.records)
    assert all(word in text for word in words), text


def change_all(content, **changes):
    for annotation in content['annotations']:
        annotation.update(changes)


NAN, INFINITE = float('nan'), float('inf')


@pytest.mark.parametrize(
    'changes',
    [
        dict(iscrowd=1),
        dict(ignore=1),
        dict(bbox=[NAN, 1, 9, 9]),
        dict(bbox=[1, 1, NAN, 9]),
        dict(bbox=[INFINITE, 1, 9, 9]),
        dict(bbox=[1, -(10**400), 9, 9]),
        dict(bbox=[999, 1, 9, 9]),
        dict(bbox=[1, 1, 0.5, 0.5]),
        dict(area=NAN),
        dict(area=INFINITE),
        dict(area=0),
    ],
    ids=str,
)
def test_training_needs_a_usable_box(root, path, content, caplog, changes):
    one = content['annotations'][0].copy()
    change_all(content, **changes)
    refused(root, path, content, 'has no usable box', f'of {len(content["annotations"])} annotations')
    warned(root, path, content, caplog, 'has no usable box', test_mode=True)
    content['annotations'][0] = one
    path.write_text(json.dumps(content))
    check(root)


def test_training_needs_a_box_of_a_class_in_an_image_that_is_large_enough(root, path, content):
    for image in content['images']:
        image['width'] = 31
    refused(root, path, content, 'has no usable box', 'filter_cfg')
    for image in content['images']:
        image['width'] = 128
    content['categories'].append(dict(id=7, name='hexagon'))
    change_all(content, category_id=7)
    refused(root, path, content, 'has no usable box', 'or not of the classes')


def test_only_a_data_set_beside_another_may_lack_annotations(root, path, content, caplog):
    """As the unlabelled half of semi-supervised training does."""
    content['annotations'] = []
    warned(root, path, content, caplog, filter_cfg=None)
    refused(root, path, content, 'of 0 annotations', alone=True, filter_cfg=None)
    refused(root, path, content, 'of 0 annotations')


def test_numbers_that_are_not_finite_are_counted(root, path, content, caplog):
    content['annotations'][0]['bbox'] = [NAN, 10, 20, 20]
    content['annotations'][1]['bbox'] = [10, 10, 20, NAN]
    content['annotations'][2]['area'] = INFINITE
    warned(root, path, content, caplog, '2 without finite numbers', '1 without finite area')
    content['annotations'][3]['bbox'] = [10, 10, INFINITE, 20]
    refused(root, path, content, 'annotation 4 has bbox [10, 10, inf, 20], expected a finite width and height')


def test_boxes_as_corners(root, path, content, caplog):
    good = json.loads(path.read_text())
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['bbox'] = [x, y, x + w, y + h]
    refused(root, path, content, 'boxes leave their image', 'corners', '[x, y, width, height]')
    for annotation in good['annotations'][::3]:  # objects that go on beyond the image
        annotation['bbox'][0] = -5
    warned(root, path, good, caplog, 'boxes leave their image')


@pytest.mark.parametrize(
    'kind, key, value',
    [
        ('images', 'width', '12'),
        ('images', 'width', None),
        ('images', 'width', NAN),
        ('images', 'height', INFINITE),
        ('images', 'height', 0),
        ('images', 'height', -5),
        ('images', 'height', True),
        ('images', 'width', 10**300),
        ('images', 'id', []),
        ('images', 'id', None),
        ('images', 'file_name', None),
        ('images', 'file_name', ''),
        ('images', 'file_name', ['a']),
        ('images', 'file_name', 'a\nb.jpg'),
        ('images', 'file_name', '\ud800.jpg'),
        ('images', 'file_name', '9' * 5000),
        ('categories', 'name', None),
        ('categories', 'name', {}),
        ('categories', 'id', {}),
        ('annotations', 'id', 'a'),
        ('annotations', 'id', []),
        ('annotations', 'id', 10**4000),
        ('annotations', 'image_id', {}),
        ('annotations', 'image_id', NAN),
        ('annotations', 'category_id', []),
        ('annotations', 'category_id', None),
        ('annotations', 'bbox', ['1', 2, 3, 4]),
        ('annotations', 'bbox', '1234'),
        ('annotations', 'bbox', {}),
        ('annotations', 'area', '12'),
        ('annotations', 'area', True),
        ('annotations', 'bbox', [[[[[]]]] * 50] * 50),
    ],
)
def test_wrong_types(root, path, content, kind, key, value):
    content[kind][1][key] = value
    refused(root, path, content, key)


@pytest.mark.parametrize('value', [None, 5, 'text', {}, [None], [[]], ['a']], ids=str)
@pytest.mark.parametrize('kind', ['images', 'categories', 'annotations'])
def test_wrong_lists(root, path, content, kind, value):
    content[kind] = value
    refused(root, path, content, kind)


def test_sizes_that_nothing_reads(root, path, content):
    content['images'][0].update(width=40000, height=40000)
    refused(root, path, content, 'images[0]', '40000x40000 pixels')
    content['images'] = []
    refused(root, path, content, 'lists no image')


@pytest.mark.parametrize('kind', ['images', 'categories', 'annotations'])
def test_ids_must_differ(root, path, content, kind):
    content[kind][1]['id'] = content[kind][0]['id']
    refused(root, path, content, f'1 of {len(content[kind])} {kind}', 'id 1, 2 times')


def test_names_of_categories_must_differ(root, path, content, caplog):
    content['categories'].append(dict(id=9, name='circle'))
    refused(root, path, content, "the first is 'circle'")
    content['categories'][-1] = dict(id=9, name='hexagon')
    content['categories'].append(dict(id=10, name='hexagon'))
    warned(root, path, content, caplog, "the first is 'hexagon'")


def test_what_mmdet_tolerates_is_a_warning(root, path, content, caplog):
    names = [image['file_name'] for image in content['images']]
    content['images'][1]['file_name'] = names[0]
    content['images'][2]['file_name'] = f'../train/{names[2]}'
    content['images'][3]['file_name'] = str(root / 'train' / names[3])
    content['annotations'][0]['id'] = 0
    warned(
        root, path, content, caplog,
        '2 of 16 images are outside the image folder',
        '1 of 16 images are repeated',
        'annotation id 0',
    )  # fmt: skip


@pytest.mark.parametrize(
    'name, words',
    [
        ('utf-16', 'is UTF-16'),
        ('utf-16-le', 'zero bytes'),
        ('utf-32', 'is UTF-32'),
        ('utf-8-sig', 'byte order mark'),
        ('latin-1', 'not UTF-8 text (line 1, byte 0xfc)'),
        ('gzip', 'compressed by gzip: unpack it'),
    ],
)
def test_encodings(root, path, content, name, words):
    content['info'] = dict(contributor='Jürgen')
    text = json.dumps(content, ensure_ascii=False)
    path.write_bytes(gzip.compress(text.encode()) if name == 'gzip' else text.encode(name))
    with pytest.raises(InputError) as error:
        check(root)
    assert words in str(error.value) and str(path) in str(error.value) and '\n' not in str(error.value)


def test_json_that_python_refuses(root, path):
    refused(root, path, '[' * 200000, 'nested too deeply')
    refused(root, path, '{"images": [%s]}' % ('9' * 5000), 'number that is too long')
    refused(root, path, '', 'truncated or not JSON')
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match='train.json is a folder or a pipe'):
        check(root)


def test_data_of_coco_2014(root, tmp_path, monkeypatch):
    """As the data set's archives unpack, and with a photograph lost."""
    monkeypatch.chdir(tmp_path)
    cfg = load_config(CONFIGS / 'faster_rcnn_c4' / 'faster_rcnn_c4_se_r50_coco2014.py')
    use_scope(cfg)
    coco = tmp_path / 'data' / 'coco'
    (coco / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (coco / f'{split}2014').mkdir()
        content = json.loads((root / 'annotations' / f'{split}.json').read_text())
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'], 1)]
        for image in content['images']:
            name = f'COCO_{split}2014_{image["id"]:012}.png'
            shutil.copy(root / split / image['file_name'], coco / f'{split}2014' / name)
            image['file_name'] = name
        (coco / 'annotations' / f'instances_{split}2014.json').write_text(json.dumps(content))
        assert check_dataset(cfg[f'{split}_dataloader'].dataset, True)[0] == 80
    (coco / 'val2014' / name).unlink()
    with pytest.raises(InputError, match=f'val2014/{name}'):
        check_dataset(cfg.test_dataloader.dataset)

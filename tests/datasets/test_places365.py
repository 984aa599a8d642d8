import shutil

import pytest
from mmengine.registry import DATASETS, init_default_scope

from se_mm.datasets import Places365
from se_mm.datasets.drawn import SCENES
from se_mm.utils import InputError

FIRST = '/d/desert/sand/00000001.jpg'


@pytest.fixture
def root(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / 'places')


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_reads_lists_and_folders(root):
    train, val = Places365(root), Places365(root, split='val')
    assert len(train) == 4 * len(SCENES) and len(val) == 2 * len(SCENES)
    assert train.metainfo['classes'] == tuple(name[3:] for name in SCENES)
    info = train.get_data_info(0)
    assert info['gt_label'] == 0 and info['img_path'] == f'{root}/data_256{FIRST}'
    assert val.get_data_info(0)['img_path'] == f'{root}/val_256/Places365_val_00000001.jpg'
    train.check_images(), val.check_images()


def test_challenge_and_large_images(root):
    shutil.copy(root / 'places365_train_standard.txt', root / 'places365_train_challenge.txt')
    assert Places365(root, split='train_challenge').image_dir().name == 'data_256'
    (root / 'data_256').rename(root / 'data_large_challenge')
    (root / 'val_256').rename(root / 'val_large')
    challenge = Places365(root, split='train_challenge', small=False)
    assert challenge.get_data_info(0)['img_path'] == f'{root}/data_large_challenge{FIRST}'
    Places365(root, split='val', small=False).check_images()


def test_loads_images_through_mmpretrains_transforms(root):
    init_default_scope('mmpretrain')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='CenterCrop', crop_size=64), dict(type='PackInputs')]
    dataset = DATASETS.build(dict(type='se_mm.Places365', data_root=str(root), pipeline=pipeline))
    sample = dataset[5]
    assert sample['inputs'].shape == (3, 64, 64) and sample['data_samples'].gt_label.item() == 1


def missing_root(root):
    return dict(data_root=root / 'nowhere'), ['nowhere', 'does not exist', 'data_root']


def unknown_split(root):
    return dict(data_root=root, split='test'), ["'test'", 'train_challenge', 'val']


def missing_list(root):
    return dict(data_root=root, split='train_challenge'), ['places365_train_challenge.txt', 'belongs there']


def missing_categories(root):
    (root / 'categories_places365.txt').unlink()
    return dict(data_root=root), ['categories_places365.txt', 'missing']


def empty_list(root):
    (root / 'places365_train_standard.txt').write_text('')
    return dict(data_root=root), ['places365_train_standard.txt', 'empty']


def unknown_number(root):
    edit(root / 'places365_train_standard.txt', f'{FIRST} 0', f'{FIRST} 8')
    return dict(data_root=root), ['places365_train_standard.txt, line 1', 'unknown category 8', '0 to 7']


def unknown_name(root):
    edit(root / 'places365_train_standard.txt', FIRST, '/z/zoo/00000001.jpg')
    return dict(data_root=root), ['line 1', '/z/zoo/00000001.jpg', '/d/desert/sand']


def broken_line(root):
    edit(root / 'places365_val.txt', 'Places365_val_00000002.jpg ', 'Places365_val_00000002.jpg')
    return dict(data_root=root, split='val'), ['places365_val.txt, line 2', 'expected']


def unnumbered(root):
    edit(root / 'categories_places365.txt', ' 3\n', ' 4\n')
    return dict(data_root=root), ['categories_places365.txt', '0, 1, 2']


def other_size(root):
    return dict(data_root=root, small=False), ['data_large_standard or data_large', 'small=True']


@pytest.mark.parametrize(
    'damage',
    [
        missing_root,
        unknown_split,
        missing_list,
        missing_categories,
        empty_list,
        unknown_number,
        unknown_name,
        broken_line,
        unnumbered,
        other_size,
    ],
)
def test_what_is_wrong_is_named(root, damage):
    kwargs, words = damage(root)
    with pytest.raises(InputError) as error:
        Places365(**kwargs)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_missing_images_are_counted(root):
    for i in (1, 2):
        (root / f'data_256/m/mountain/{i:08d}.jpg').unlink()
    with pytest.raises(InputError, match=r'2 of 32 images .* broken: .*data_256/m/mountain/00000001.jpg'):
        Places365(root).check_images()


def test_unreadable_image_is_named(root):
    (root / f'data_256{FIRST}').write_bytes(b'')
    init_default_scope('mmpretrain')
    dataset = Places365(root, pipeline=[dict(type='mmpretrain.LoadImageFromFile')])
    with pytest.raises(RuntimeError, match='desert/sand/00000001.jpg'):
        dataset[0]

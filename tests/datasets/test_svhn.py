import numpy as np
import pytest
from scipy.io import savemat

from se_mm.datasets import SVHN
from se_mm.registry import DATASETS
from se_mm.utils import InputError


def write(folder, images=7, split='train', **changes):
    generator = np.random.default_rng(0)
    content = dict(
        X=generator.integers(0, 256, (32, 32, 3, images), dtype=np.uint8),
        y=(np.arange(images) % 10 + 1).astype(np.uint8)[:, None],
    )
    content.update(changes)
    savemat(folder / f'{split}_32x32.mat', {key: value for key, value in content.items() if value is not None})
    return content


def test_images_and_labels(tmp_path):
    content = write(tmp_path, images=12, split='test')
    dataset = DATASETS.build(dict(type='se_mm.SVHN', data_root=str(tmp_path), split='test', test_mode=True))
    assert len(dataset) == 12 and dataset.metainfo['classes'] == tuple('0123456789')
    for i in range(12):
        item = dataset[i]
        assert np.array_equal(item['img'], content['X'][..., i])
        assert item['gt_label'] == content['y'][i, 0] % 10
    assert dataset[9]['gt_label'] == 0  # 10 stands for the digit 0


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(y=None), 'no variables X and y'),
        (dict(X=np.zeros((7, 32, 32, 3), np.uint8)), r'expected uint8 \(32, 32, 3, images\)'),
        (dict(X=np.zeros((32, 32, 3, 7))), 'float64'),
        (dict(y=np.zeros((7, 1), np.uint8)), 'one label from 1 to 10'),
        (dict(y=np.ones((6, 1), np.uint8)), 'for each of 7 images'),
    ],
    ids=str,
)
def test_wrong_content(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        SVHN(data_root=str(tmp_path))


def test_wrong_files(tmp_path):
    with pytest.raises(InputError, match='train_32x32.mat is missing.*data_root'):
        SVHN(data_root=str(tmp_path))
    (tmp_path / 'train_32x32.mat').write_bytes(b'<html>not found</html>' * 40)
    with pytest.raises(InputError, match='cannot be read, download it again'):
        SVHN(data_root=str(tmp_path))
    with pytest.raises(InputError, match="no split 'val'"):
        SVHN(data_root=str(tmp_path), split='val')

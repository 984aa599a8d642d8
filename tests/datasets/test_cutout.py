import numpy as np
import pytest

from conftest import CONFIGS
from se_mm.registry import TRANSFORMS
from se_mm.utils import InputError
from se_mm.utils.config import load_config


def cut(size, image, seed, fill):
    np.random.seed(seed)
    return TRANSFORMS.build(dict(type='se_mm.Cutout', size=size, fill=fill))(dict(img=image, gt_label=1))


@pytest.mark.parametrize('size', [16, 8, 5, 1])
def test_squares_around_every_pixel(size):
    image = np.random.default_rng(0).integers(1, 256, (20, 30, 3), dtype=np.uint8)
    before, rows_of_centres, sides = image.copy(), set(), set()
    for seed in range(300):
        results = cut(size, image, seed, fill=0)
        np.random.seed(seed)
        y, x = np.random.randint(20), np.random.randint(30)
        below, right = (np.arange(20) - y)[:, None], (np.arange(30) - x)[None]
        near = [(-(size // 2) <= distance) & (distance < size - size // 2) for distance in (below, right)]
        inside = near[0] & near[1]
        assert np.array_equal(results['img'], image * ~inside[..., None]) and results['gt_label'] == 1
        rows_of_centres.add(y)
        half, rest = size // 2, size - size // 2
        out = dict(top=y < half, left=x < half, bottom=y + rest > 20, right=x + rest > 30)
        sides |= {side for side in out if out[side]}
        assert (inside.sum() < size * size) == any(out.values())
    assert np.array_equal(image, before)  # which the data set keeps
    assert rows_of_centres == set(range(20)) and len(sides) == (4 if size > 1 else 0)


def test_mean_colour_is_zero_after_normalising():
    for config in ('shake_shake26_2x96d_cifar10', 'shake_even29_2x4x64d_cifar100'):
        cfg = load_config(CONFIGS / 'cifar' / f'{config}.py')
        _, _, transform, _ = cfg.train_dataloader.dataset.pipeline
        mean, std = (np.array(cfg.data_preprocessor[key]) for key in ('mean', 'std'))
        for dtype, tolerance in ((np.uint8, 0.5 / std.min()), (np.float32, 1e-6)):
            image = TRANSFORMS.build(transform)(dict(img=np.full((1, 1, 3), 255, dtype)))['img']
            assert image.dtype == dtype and np.abs((image - mean) / std).max() <= tolerance


def test_grey_images():
    grey = cut(2, np.full((4, 4), 9, np.uint8), 0, fill=127.6)['img']
    assert set(grey.flat) == {9, 128}


@pytest.mark.parametrize('size', [0, 2.5])
def test_wrong_size(size):
    with pytest.raises(InputError, match=f'size={size}: choose a whole number from 1'):
        cut(size, None, 0, 0)

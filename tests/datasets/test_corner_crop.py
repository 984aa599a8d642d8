import numpy as np
import pytest

from se_mm.datasets import CornerCrop


@pytest.mark.parametrize(
    ('corner', 'rows', 'columns'),
    [
        ('top left', slice(0, 3), slice(0, 4)),
        ('top right', slice(0, 3), slice(5, 9)),
        ('bottom left', slice(4, 7), slice(0, 4)),
        ('bottom right', slice(4, 7), slice(5, 9)),
    ],
)
@pytest.mark.parametrize('channels', [(), (3,)], ids=['grey', 'colour'])
def test_corners(corner, rows, columns, channels):
    """crop_size is width and height, as of MMCV's CenterCrop."""
    image = np.random.default_rng(0).integers(0, 256, (7, 9, *channels), np.uint8)
    cropped = CornerCrop((4, 3), corner).transform(dict(img=image))
    assert cropped['img_shape'] == (3, 4)
    np.testing.assert_array_equal(cropped['img'], image[rows, columns])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="corner='left': choose one of top left, top right"):
        CornerCrop(4, 'left')
    for shape in ((3, 9, 3), (9, 3, 3)):
        with pytest.raises(ValueError, match='a.png of .* is smaller than crop_size 4x4: resize images'):
            CornerCrop(4, 'top left').transform(dict(img=np.zeros(shape), img_path='a.png'))

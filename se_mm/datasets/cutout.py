"""Squares that are cut out of images: Cutout, https://arxiv.org/abs/1708.04552."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from se_mm.registry import TRANSFORMS
from se_mm.utils import InputError


@TRANSFORMS.register_module()
class Cutout(BaseTransform):
    """Fill a square at a random place of each image with one colour.

    The centre is any pixel of the image, each as likely as the others; what of the square lies outside of the image is
    lost. (``Cutout`` of mmpretrain moves squares that stick out at the top or at the left into the image.)

    Args:
        size: height and width of the square, in pixels. The paper has 16 for CIFAR-10 and 8 for CIFAR-100.
        fill: the colour, one number or one for each channel. The paper has the mean that normalising takes away. Images
            of whole numbers get the nearest whole numbers.

    Raises:
        InputError: ``size`` is no whole number from 1.
    """

    def __init__(self, size: int, fill: float | Sequence[float]) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f'Cutout: size={size!r}: choose a whole number from 1')
        self.size, self.fill = size, fill

    def transform(self, results: dict) -> dict:
        """Change ``img``, (H, W, C) or (H, W)."""
        image = results['img'].copy()
        top, left = (np.random.randint(side) - self.size // 2 for side in image.shape[:2])
        fill = np.rint(self.fill) if np.issubdtype(image.dtype, np.integer) else self.fill
        image[max(top, 0) : top + self.size, max(left, 0) : left + self.size] = fill
        return dict(results, img=image)

"""SVHN: house numbers, 32x32 crops of single digits, http://ufldl.stanford.edu/housenumbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from se_mm.registry import DATASETS
from se_mm.utils import InputError

DOWNLOAD = 'see http://ufldl.stanford.edu/housenumbers, "Format 2: Cropped Digits"'


@DATASETS.register_module()
class SVHN(BaseDataset):
    """The cropped digits of SVHN from the official .mat files, which lie directly in ``data_root``.

    Images are given as ``img``, uint8 arrays (32, 32, 3) in RGB; labels are the digits 0 to 9 (the
    files have 10 for the digit 0).

    Args:
        data_root: folder of ``train_32x32.mat``, ``test_32x32.mat`` and ``extra_32x32.mat``.
        split: 'train' (73,257 images), 'test' (26,032) or 'extra' (531,131).
        **kwargs: of MMEngine's ``BaseDataset``.

    Raises:
        InputError: unknown split; a file is missing, broken or not of this format.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, data_root: str, split: str = 'train', **kwargs) -> None:
        if split not in ('train', 'test', 'extra'):
            raise InputError(f"SVHN has no split {split!r}: choose 'train', 'test' or 'extra'")
        self.path = Path(data_root) / f'{split}_32x32.mat'
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """``img`` and ``gt_label`` of every image, as above."""
        from scipy.io import loadmat

        if not self.path.is_file():
            raise InputError(f'{self.path} is missing: set data_root, or download it there ({DOWNLOAD})')
        try:
            content = loadmat(self.path, variable_names=['X', 'y'])
        except Exception as error:  # of many kinds
            raise InputError(f'{self.path} cannot be read, download it again ({DOWNLOAD}): {error}') from error
        if not {'X', 'y'} <= set(content):
            raise InputError(f'{self.path} has no variables X and y: it is not a file of cropped digits ({DOWNLOAD})')
        images, labels = content['X'], content['y'].ravel()
        if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
            raise InputError(f'{self.path}: X is {images.dtype} {images.shape}, expected uint8 (32, 32, 3, images)')
        if len(labels) != images.shape[3] or not np.isin(labels, range(1, 11)).all():
            raise InputError(f'{self.path}: y is not one label from 1 to 10 for each of {images.shape[3]} images')
        images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
        return [dict(img=image, gt_label=int(label) % 10) for image, label in zip(images, labels)]

"""Places365: scene classification with 365 categories, http://places2.csail.mit.edu."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.dataset import BaseDataset

from se_mm.registry import DATASETS
from se_mm.utils import InputError

from .images import check_images
from .text import read_list

SPLITS = dict(
    train_standard='places365_train_standard.txt',
    train_challenge='places365_train_challenge.txt',
    val='places365_val.txt',
)
DOWNLOAD = 'see http://places2.csail.mit.edu/download.html'


@DATASETS.register_module()
class Places365(BaseDataset):
    """Places365-Standard or -Challenge, from the official lists and folders.

    ::

        data_root/
          categories_places365.txt        /a/airfield 0
          places365_train_standard.txt    /a/airfield/00000001.jpg 0
          places365_train_challenge.txt
          places365_val.txt               Places365_val_00000001.jpg 165
          data_256/a/airfield/...         training images, or data_256_standard/, data_256_challenge/
          val_256/...                     validation images
          data_large/..., val_large/...   the same in full size (``small=False``)

    Args:
        data_root: the folder above.
        split: 'train_standard', 'train_challenge' or 'val'.
        small: images resized to 256x256; False for full size.
        **kwargs: of MMEngine's ``BaseDataset``.

    Raises:
        InputError: a file or folder is missing, or a list does not fit the categories.
    """

    def __init__(self, data_root: str, split: str = 'train_standard', small: bool = True, **kwargs) -> None:
        if split not in SPLITS:
            raise InputError(f'Places365 has no split {split!r}: choose one of {sorted(SPLITS)}')
        self.root, self.split = Path(data_root), split
        self.size = '256' if small else 'large'
        self.categories = self._read_categories()
        super().__init__(
            data_root=data_root,
            metainfo=dict(classes=tuple(name[3:] for name in self.categories)),
            **kwargs,
        )

    def _read_list(self, name: str) -> list[tuple[int, str, int]]:
        """Line number, path and number of each line of a list."""
        path = self.root / name
        if not self.root.is_dir():
            raise InputError(f'Places365 folder {self.root} does not exist: set data_root, or put the data there')
        if not path.exists():
            raise InputError(f'{path} is missing: it is one of the official lists and belongs there ({DOWNLOAD})')
        entries = read_list(path)
        if not entries:
            raise InputError(f'{path} is empty: download it again ({DOWNLOAD})')
        return entries

    def _read_categories(self) -> dict[str, int]:
        entries = self._read_list('categories_places365.txt')
        if [label for _, _, label in entries] != list(range(len(entries))):
            raise InputError(f'{self.root / "categories_places365.txt"}: categories must be numbered 0, 1, 2, ...')
        return {key: label for _, key, label in entries}

    def image_dir(self) -> Path:
        """The folder that the paths of the split's list are relative to."""
        if self.split == 'val':
            names = [f'val_{self.size}']
        else:
            names = [f'data_{self.size}_{self.split.removeprefix("train_")}', f'data_{self.size}']
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        raise InputError(
            f'{self.root} has no folder {" or ".join(names)} with the images of split {self.split}: '
            f'unpack the archive there ({DOWNLOAD}), or set small={self.size != "256"} for the other size'
        )

    def load_data_list(self) -> list[dict]:
        """One dict of ``img_path`` and ``gt_label`` for each image of the split."""
        images, data_list = self.image_dir(), []
        path = self.root / SPLITS[self.split]
        for number, key, label in self._read_list(SPLITS[self.split]):
            if label >= len(self.categories):
                raise InputError(
                    f'{path}, line {number}: unknown category {label}, '
                    f'categories_places365.txt has 0 to {len(self.categories) - 1}'
                )
            if self.split != 'val' and self.categories.get(os.path.dirname(key)) != label:
                raise InputError(
                    f'{path}, line {number}: {key} is not in category {label} of categories_places365.txt '
                    f'({list(self.categories)[label]})'
                )
            data_list.append(dict(img_path=f'{images}/{key.lstrip("/")}', gt_label=label))
        return data_list

    def check_images(self, skippable: int | None = None) -> None:
        """Check that every listed image is there and whole, see :func:`se_mm.datasets.images.check_images`.

        Raises:
            InputError: naming how many images are missing or broken and the first of them.
        """
        paths = [self.get_data_info(i)['img_path'] for i in range(len(self))]
        check_images(paths, str(self.root / SPLITS[self.split]), skippable)

    def prepare_data(self, idx: int) -> dict:
        """Load and transform an image; an unreadable one is named."""
        try:
            return super().prepare_data(idx)
        except Exception as error:
            raise RuntimeError(f'cannot read {self.get_data_info(idx)["img_path"]}: {error}') from error

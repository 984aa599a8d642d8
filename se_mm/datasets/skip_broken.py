"""Training goes on where a few images are broken, and says which."""

from __future__ import annotations

import os
from pathlib import Path

import mmcv
from filelock import FileLock
from mmengine.dataset import BaseDataset
from mmengine.fileio import get

from se_mm.registry import DATASETS
from se_mm.utils import InputError

from .images import image_size


class BrokenImageError(InputError):
    """An image cannot be read; the message is one line, also of a worker's error, which torch gives with its trace."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


@DATASETS.register_module()
class SkipBroken:
    """A data set that takes the next image instead of one that is broken, up to a number of images.

    An image is broken if it cannot be decoded, or has not the end that its kind has. Any other error of the pipeline
    stays an error. All that the data set has is found here too, so that samplers and wrappers work as without.

    Args:
        dataset: config of the data set, which has files of images.
        limit: how many images may be replaced; with 0, a broken image is an error that names the image.
        record: file that lists the images replaced, one path a line. All processes and workers that share the file
            share the limit.

    Raises:
        BrokenImageError: on reading, one broken image more than ``limit``.
    """

    def __init__(self, dataset: dict | BaseDataset, limit: int, record: str) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.limit, self.record = limit, record
        self.broken = set()  # that this process has met

    def __getattr__(self, name: str) -> object:
        if name == 'dataset':  # not yet there, as while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> object:
        """That of the data set; hooks exchange it."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: object) -> None:
        self.dataset.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple) -> object:
        if isinstance(index, tuple):  # a frame of a video: no other stands for it
            return self.dataset[index]
        for i in range(index, index + len(self)):
            i %= len(self)
            if i in self.broken:
                continue
            path = self._path(i) if self.limit else None
            try:
                if path and _is_cut_off(path):
                    raise OSError('cut off')  # which OpenCV would fill with grey
                return self.dataset[i]
            except Exception as error:  # of many kinds
                path = self._path(i)
                if path is None or self._reads(path):
                    raise
                self._note(path, ' '.join(str(error).split()))
                self.broken.add(i)
        raise BrokenImageError(f'all {len(self)} images are broken, see {self.record}')

    def _path(self, index: int) -> str | None:
        path = self.dataset.get_data_info(index).get('img_path')
        return path if isinstance(path, str | os.PathLike) else None

    def _reads(self, path: str) -> bool:
        try:
            if self.limit and _is_cut_off(path):
                return False
            content = get(path, backend_args=getattr(self.dataset, 'backend_args', None))
            return mmcv.imfrombytes(content) is not None
        except Exception:  # of many kinds
            return False

    def _note(self, path: str, reason: str) -> None:
        record = Path(self.record)
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{record}.lock'):
            known = replaced(record)
            if path in known:
                return
            if len(known) >= self.limit:
                reason = reason.replace(path, '').strip(' :,') or 'no image'
                raise BrokenImageError(
                    f'image {path} is broken ({reason[:200]})'
                    + (f', and --skip-broken {self.limit} have been replaced, see {record}' if self.limit else '')
                    + ': copy it again or take it out of the data, or have training replace broken images by others, '
                    f'--skip-broken {self.limit + 1}'
                )
            with record.open('a') as file:
                file.write(f'{path}\n')


def _is_cut_off(path: str) -> bool:
    try:
        image_size(path)
    except InputError:
        return True
    except OSError:  # not a file of this machine, or missing: the loader knows
        pass
    return False


def replaced(record: str | os.PathLike) -> list[str]:
    """Paths of the images that :class:`SkipBroken` has replaced, by its record."""
    return Path(record).read_text().splitlines() if os.path.isfile(record) else []


def skip_broken(dataset: dict, limit: int, record: str) -> dict:
    """The config of a data set, those inside wrappers each in a :class:`SkipBroken`."""
    if 'dataset' in dataset:
        dataset['dataset'] = skip_broken(dataset['dataset'], limit, record)
    elif dataset.get('datasets'):
        dataset['datasets'] = [skip_broken(part, limit, record) for part in dataset['datasets']]
    else:
        return dict(type='se_mm.SkipBroken', dataset=dataset, limit=limit, record=record)
    return dataset

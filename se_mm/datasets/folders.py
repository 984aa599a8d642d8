"""Checks of the lists and folders of images that mmpretrain's CustomDataset and ImageNet read."""

from __future__ import annotations

import os

from se_mm.utils import InputError

from .text import is_path, read_list, read_text, shown


def reads_lists(cls: type) -> bool:
    """Whether a data set reads its list of images, or its folders, the way mmpretrain's CustomDataset does."""
    custom = next((base for base in cls.__mro__ if base.__name__ == 'CustomDataset'), None)
    return custom is not None and cls.load_data_list is custom.load_data_list


def listed_images(dataset: dict, cls: type) -> tuple[list[str], str]:
    """The images of a data set.

    Args:
        dataset: its config.
        cls: its class, :func:`reads_lists` of which is true.

    Returns:
        Paths of the images, and the list or folder that names them.

    Raises:
        InputError: the list is missing or damaged, has a number that is none of the classes, or there are no images.
    """
    arguments = {key: value for key, value in dataset.items() if key not in ('type', 'pipeline', 'lazy_init')}
    try:
        built = cls(**arguments, pipeline=[], lazy_init=True)
        source = built.ann_file
        if source:
            if not os.path.exists(source):
                raise InputError(f'list of images {source} is missing: put it there, or set ann_file')
            _check_list(source, built.metainfo.get('classes') or (), built.with_label)
        built.full_init()
    except InputError:
        raise
    except Exception as error:  # of many kinds
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise InputError(f'the data set {cls.__name__} in {dataset.get("data_root") or "."}: {reason}') from error
    return [built.get_data_info(i)['img_path'] for i in range(len(built))], source or str(built.img_prefix)


def _check_list(path: str, classes: tuple | list, with_label: bool) -> None:
    lines = read_text(path).splitlines()
    if blank := [i for i, line in enumerate(lines, 1) if not line.strip()]:
        raise InputError(f'{path}, line {blank[0]}: the line is empty, and mmpretrain reads no empty lines: remove it')
    if not lines:
        raise InputError(f'{path} is empty: copy it again')
    if not with_label:
        if bad := [i for i, line in enumerate(lines, 1) if not is_path(line)]:
            raise InputError(f'{path}, line {bad[0]}: expected a path, found {shown(lines[bad[0] - 1])}')
        return
    for number, key, label in read_list(path):
        if classes and label >= len(classes):
            raise InputError(
                f'{path}, line {number}: {key} has the class {label}, but the config has {len(classes)} classes '
                f'(0 to {len(classes) - 1}): correct the list, or set metainfo=dict(classes=...)'
            )

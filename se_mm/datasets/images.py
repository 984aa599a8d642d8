"""Checks of image files before a run: kind, size and end of each, without decoding.

What was found good is kept, by length and time of each file, in ``~/.cache/se_mm/images``, or in the folder that the
environment variable ``SE_MM_CACHE`` names: the next check looks at these two numbers only.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from mmengine.logging import print_log
from PIL import Image

from se_mm.utils import InputError, written_whole

SUFFIXES = ('.jpg', '.jpeg', '.png', '.gif', '.bmp', '.webp')  # kinds that OpenCV and Pillow both read
STARTS = (b'\xff\xd8', b'\x89PNG', b'GIF8', b'BM', b'RIFF')
OTHER_STARTS = (b'II*\0', b'MM\0*', b'\0\0\0')  # of TIFF, JPEG 2000 and AVIF, which OpenCV may read
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP')  # of Pillow
MAX_SIDE, MAX_PIXELS = 1 << 20, 1 << 30  # OpenCV refuses larger images
LARGE, LONG = 178_956_970, 1000  # pixels that Pillow warns of; ratio of sides that no resizing keeps
NAMED = 3  # how many broken files a message names
THREADS, CHUNK = 16, 64
INTERVAL = 10  # seconds between lines of progress
VERSION = 1  # of the cache; a stricter check needs another


def check_images(paths: list[str], source: str, skippable: int | None = None) -> dict[str, tuple[int, int]]:
    """Check that image files are there and whole.

    Files of kinds other than JPEG, PNG, GIF, BMP and WebP are checked for being there and not empty only.

    Args:
        paths: of the images.
        source: the list or folder that names them, for messages.
        skippable: how many broken files training may replace: so many are no error, but a warning. None in evaluation.

    Returns:
        Width and height of the images whose size is known, by path.

    Raises:
        InputError: with the number of broken files and the first of them.
    """
    paths = list(dict.fromkeys(paths))
    sizes, bad, strange = {}, [], []
    began = time.monotonic()
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    with Cache(source) as cache, any_size(), ThreadPoolExecutor(THREADS) as pool:
        for i, results in enumerate(pool.map(_look_at, chunks, repeat(cache.known))):
            for path, entry, problem in results:
                if problem:
                    bad.append(f'{path} ({problem})')
                    continue
                cache.found[path] = entry
                if entry[2]:
                    sizes[path] = width, height = entry[2], entry[3]
                    if width * height > LARGE or width * height == 1:
                        strange.append(f'{path} ({width}x{height})')
            if time.monotonic() - began > INTERVAL:
                began = time.monotonic()
                _log(f'{source}: {min((i + 1) * CHUNK, len(paths))} of {len(paths)} images are checked', logging.INFO)
    if strange:
        _log(f'{source}: {len(strange)} of {len(paths)} images have strange sizes: {_first(strange)}')
    if bad:
        message = f'{len(bad)} of {len(paths)} images of {source} are missing or broken: {_first(bad)}'
        remedy = 'copy them again, or take them out of the data'
        if skippable is None:
            raise InputError(f'{message}: {remedy}')
        if len(bad) > skippable:
            raise InputError(f'{message}: {remedy}, or have training replace them by others, --skip-broken {len(bad)}')
        _log(f'{message}: training replaces them by others')
    return sizes


def _first(names: list[str]) -> str:
    return ', '.join(names[:NAMED]) + (', ...' if len(names) > NAMED else '')


def _log(message: str, level: int = logging.WARNING) -> None:
    print_log(message, logger='current', level=level)


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open images of any size: nothing is decoded."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _look_at(paths: list[str], known: dict[str, list[int]]) -> list[tuple[str, list[int], str | None]]:
    """Path, cache entry (length, time, width, height; 0x0 if unknown) and problem of each file."""
    results = []
    for path in paths:
        entry, problem = [], None
        try:
            status = os.stat(path)
            entry = known.get(path, [])
            if entry[:2] != [status.st_size, status.st_mtime_ns]:
                problem = _wrong_kind(status)
                width, height = (0, 0) if problem else image_size(path)
                entry = [status.st_size, status.st_mtime_ns, width, height]
        except FileNotFoundError:
            problem = 'missing'
        except OSError as error:
            problem = error.strerror or str(error)
        except InputError as error:
            problem = str(error)
        results.append((path, entry, problem))
    return results


def _wrong_kind(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return 'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe or device'
    return None if status.st_size else 'empty'


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image file by its header, (0, 0) for other kinds than those of this module.

    Raises:
        InputError: what is wrong with the file: no image, cut off, or of a size that nothing reads.
        OSError: the file cannot be opened.
    """
    with open(path, 'rb') as file:
        start = file.read(4)
        if not start.startswith(STARTS):
            if path.lower().endswith(SUFFIXES) and not start.startswith(OTHER_STARTS):
                raise InputError(f'no image, begins with {start!r}')
            return 0, 0
        file.seek(0)
        try:
            with Image.open(file, formats=FORMATS) as image:
                kind, (width, height) = image.format, image.size
        except Exception as error:  # of many kinds
            raise InputError('no image, or its header is damaged or cut off') from error
        if not _is_whole(file, kind):
            raise InputError('cut off')
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(f'{width}x{height} pixels, more than OpenCV reads')
    if max(width, height) > LONG * min(width, height):
        raise InputError(f'{width}x{height} pixels, resizing leaves nothing of the short side')
    return width, height


def _is_whole(file: BinaryIO, kind: str | None) -> bool:
    """Whether an image file, which was read to the end of its header, has the end that its kind has."""
    header = file.tell()
    length = file.seek(0, os.SEEK_END)
    if kind in ('BMP', 'WEBP'):  # the header has the length
        file.seek(2 if kind == 'BMP' else 4)
        return length >= int.from_bytes(file.read(4), 'little') + (0 if kind == 'BMP' else 8)
    file.seek(max(0, length - 64))
    tail = file.read()
    if kind == 'GIF':
        return tail.rstrip(b'\0\r\n ').endswith(b';')
    end = b'IEND' if kind == 'PNG' else b'\xff\xd9'
    if end in tail:
        return True
    file.seek(header)  # cameras write more after the end; the header can have a thumbnail with an end of its own
    return end in file.read()


class Cache:
    """What is known of the images of a list or folder, and kept at the end of a ``with`` block.

    ``known`` and ``found`` map paths to length, time in nanoseconds, width and height.
    """

    def __init__(self, source: str) -> None:
        folder = os.environ.get('SE_MM_CACHE') or Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'se_mm')
        name = sha256(os.path.realpath(source).encode()).hexdigest()[:16]
        self.path = Path(folder).expanduser() / 'images' / f'{name}.json'
        self.known, self.found = {}, {}
        try:
            content = json.loads(self.path.read_text())
            if content['version'] == VERSION and isinstance(content['images'], dict):
                self.known = content['images']
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged
            pass

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_) -> None:
        """Add what was found, also until an interruption, and drop what was in folders that are gone.

        A cache that cannot be written costs time only.
        """
        images = self.known | self.found
        gone = {folder for folder in set(map(os.path.dirname, images)) if not os.path.isdir(folder or '.')}
        images = {path: entry for path, entry in images.items() if os.path.dirname(path) not in gone}
        if images != self.known:
            try:
                with written_whole(self.path) as partial:
                    partial.write_text(json.dumps(dict(version=VERSION, images=images)))
            except OSError:
                pass

"""Reading of annotation files and lists: text in UTF-8, anything else is named."""

from __future__ import annotations

import codecs
import json
import os
import reprlib

from se_mm.utils import InputError

PACKED = {b'\x1f\x8b': 'gzip', b'PK\x03\x04': 'zip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
MARKS = {  # the longer mark first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: 'is UTF-32',
    codecs.BOM_UTF32_BE: 'is UTF-32',
    codecs.BOM_UTF16_LE: 'is UTF-16',
    codecs.BOM_UTF16_BE: 'is UTF-16',
    codecs.BOM_UTF8: 'begins with a byte order mark',
}


def read_text(path: str | os.PathLike) -> str:
    """The content of a file in UTF-8 without a byte order mark, as mmdet and mmpretrain read files.

    Raises:
        InputError: the file is no regular file, cannot be opened, is compressed, or has another encoding.
    """
    if not os.path.isfile(path):
        raise InputError(f'{path} is a folder or a pipe, expected a file')
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        raise InputError(
            f'{path} cannot be read ({error.strerror}): correct its permissions or copy it again'
        ) from error
    for magic, program in PACKED.items():
        if content.startswith(magic):
            raise InputError(f'{path} is compressed by {program}: unpack it')
    for mark, what in MARKS.items():
        if content.startswith(mark):
            raise InputError(f'{path} {what}: save it as UTF-8 without a byte order mark')
    if b'\0' in content:
        raise InputError(f'{path} has zero bytes: it is damaged or UTF-16, save it as UTF-8 or copy it again')
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        byte = content[error.start]
        raise InputError(
            f'{path} is truncated or not UTF-8 text (line {line}, byte {byte:#04x}): save it as UTF-8, or copy it again'
        ) from error


def read_json(path: str | os.PathLike) -> object:
    """The content of a JSON file.

    Raises:
        InputError: the file is not such a file, see also :func:`read_text`.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f'{path} is not in COCO format: its lists or dicts are nested too deeply') from error
    except json.JSONDecodeError as error:
        raise InputError(f'{path} is truncated or not JSON ({error}): copy it again') from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f'{path} has a number that is too long ({str(error).partition(":")[0]})') from error


def read_list(path: str | os.PathLike) -> list[tuple[int, str, int]]:
    """Line number, path and number of each line of a list ``<path> <number>``; blank lines are left out.

    Raises:
        InputError: a line is no such line or its path leaves the folder; the file is no text, see :func:`read_text`.
    """
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        key, _, label = line.strip().rpartition(' ')
        if not is_path(key) or not (label.isascii() and label.isdigit() and len(label) < 10):
            raise InputError(f'{path}, line {number}: expected "<path> <number>", found {shown(line)}')
        if '..' in key.split('/'):
            raise InputError(f'{path}, line {number}: {shown(key)} leaves the folder of the images')
        entries.append((number, key.rstrip(), int(label)))
    return entries


def is_path(value: object) -> bool:
    """Whether a value can be the path of a file: text of usual length without control characters."""
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        return False
    return not any(char < ' ' or '\ud800' <= char <= '\udfff' for char in value)


def shown(value: object) -> str:
    """A value for a message: on one line, and short."""
    return reprlib.repr(value)

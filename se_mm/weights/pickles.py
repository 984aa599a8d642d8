"""Which pickled objects a file may bring: tensors and plain data, and what MMEngine writes beside them."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from numpy._core.multiarray import _reconstruct, scalar
from packaging.version import Version


def _read_attribute(owner: type, name: str) -> object:
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'attribute {name!r} of {owner!r} is not allowed')
    return getattr(owner, name)


# MMEngine's checkpoints call getattr to name HistoryBuffer's methods; they get this instead.
_read_attribute.__module__, _read_attribute.__qualname__ = 'builtins', 'getattr'
_read_attribute.__name__ = 'getattr'

# What MMEngine writes beside the weights: its training log and the state of its random generators.
SAFE_GLOBALS = [
    HistoryBuffer,
    slice,
    _read_attribute,
    _reconstruct,
    scalar,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'uint32', 'uint8')),
]
if Version(torch.__version__) >= Version('2.6'):
    # Checkpoints written with NumPy 1 and read with NumPy 2, or the reverse. torch 2.5 has no aliases.
    SAFE_GLOBALS += [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (_reconstruct, scalar)
        for core in ('core', '_core')
    ]


class RefusedError(Exception):
    """A file would run code when loaded; the text names what."""


_all_trusted = False


def refuse_code() -> None:
    """From now on, let torch load tensors and plain data alone, whichever library reads a checkpoint.

    What MMEngine saves is registered as harmless, since releases of MMEngine before 0.10.8 do not register it.
    """
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


def allow_unsafe_pickle() -> None:
    """DANGEROUS: from now on, let every torch file run whatever code it holds, also when MMEngine reads it."""
    global _all_trusted
    _all_trusted = True
    os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    print_log('checkpoints may run code: unsafe pickles are allowed', logger='current', level=logging.WARNING)


@contextmanager
def _code_allowed() -> Iterator[None]:
    """Suspend :func:`refuse_code`, which would overrule ``torch.load(weights_only=False)``."""
    forced = os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    try:
        yield
    finally:
        if forced is not None:
            os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = forced


def load_torch(path: Path, unsafe_pickle: bool = False) -> object:
    """What ``torch.save`` wrote. Zip files are mapped into memory, so that processes of a machine share them.

    Args:
        path: the file.
        unsafe_pickle: let the file run whatever code it holds.

    Raises:
        RefusedError: the file holds objects other than tensors and plain data.
    """
    with path.open('rb') as file:
        mmap = file.read(2) == b'PK'
    if unsafe_pickle or _all_trusted:
        with _code_allowed():
            return torch.load(path, map_location='cpu', weights_only=False, mmap=mmap)
    torch.serialization.add_safe_globals(SAFE_GLOBALS)  # for good: MMEngine will read the same file
    try:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if re.search('Unsupported|not allowed', str(error)):
            found = re.search(r'GLOBAL (\S+)|(attribute .*) is not allowed', str(error))
            raise RefusedError(
                found[1] or found[2] if found else 'objects other than tensors and plain data'
            ) from error
        raise


class PlainUnpickler(pickle._Unpickler):
    """Loads dicts of arrays. In Python, since the one in C allocates whatever size a damaged file asks for."""

    allowed = {
        'collections.OrderedDict',
        '_codecs.encode',  # bytes in pickles of protocol 2
        'numpy.ndarray',
        'numpy.dtype',
        'numpy.core.multiarray._reconstruct',
        'numpy._core.multiarray._reconstruct',
    }

    def find_class(self, module: str, name: str) -> object:
        if f'{module}.{name}' not in self.allowed:
            raise RefusedError(f'{module}.{name}')
        return _reconstruct if name == '_reconstruct' else super().find_class(module, name)

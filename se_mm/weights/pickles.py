"""Which pickled objects a file may bring: tensors and plain data, and what MMEngine writes beside them."""

from __future__ import annotations

import _codecs
import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from numpy._core.multiarray import _reconstruct, scalar
from packaging.version import Version

from .archives import check_archive


def _read_attribute(owner: type, name: str) -> object:
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'attribute {name!r} of {owner!r} is not allowed')
    return getattr(owner, name)


# MMEngine's checkpoints call getattr to name HistoryBuffer's methods; they get this instead.
_read_attribute.__module__, _read_attribute.__qualname__ = 'builtins', 'getattr'
_read_attribute.__name__ = 'getattr'

DTYPES = 'b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16'.split()


def _plain_dtype(name: str, align: bool = False, copy: bool = False) -> np.dtype:
    """Called for ``numpy.dtype``: NumPy's one dtype of these numbers, which a pickle cannot change.

    A copy could be changed by ``__setstate__`` so that NumPy takes bytes of the file for addresses of objects. The
    numbers beside the weights are read in this machine's byte order.
    """
    if name not in DTYPES:
        raise pickle.UnpicklingError(f'dtype {name!r} is not allowed')
    return np.dtype(name)


_plain_dtype.__module__, _plain_dtype.__qualname__ = 'numpy', 'dtype'
_plain_dtype.__name__ = 'dtype'


class PlainArray(np.ndarray):
    """Called for ``numpy.ndarray``: an array whose numbers a file has to bring, so that no small file fills the memory.

    It is pickled as NumPy's own.
    """

    def __new__(cls, *_: object, **__: object) -> PlainArray:
        raise pickle.UnpicklingError('array without numbers is not allowed')

    def __reduce__(self) -> tuple:
        return np.asarray(self).__reduce__()


def _empty_array(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """Called for NumPy's ``_reconstruct``: what every pickled array begins as, before it gets its numbers.

    MMEngine lets ``numpy.ndarray`` stand for itself while it reads a file.
    """
    if kind not in (PlainArray, np.ndarray) or shape != (0,) or code not in (b'b', 'b'):
        raise pickle.UnpicklingError('array without numbers is not allowed')
    return np.ndarray.__new__(kind, shape, 'b')


PlainArray.__module__, PlainArray.__qualname__, PlainArray.__name__ = 'numpy', 'ndarray', 'ndarray'
_empty_array.__module__, _empty_array.__qualname__ = _reconstruct.__module__, _reconstruct.__qualname__
_empty_array.__name__ = _reconstruct.__name__

# What MMEngine writes beside the weights: its training log and the state of its random generators.
SAFE_GLOBALS = [
    HistoryBuffer,
    slice,
    _read_attribute,
    _empty_array,
    scalar,
    PlainArray,
    _plain_dtype,
    *(type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'uint32', 'uint8')),
]
if Version(torch.__version__) >= Version('2.6'):
    # Checkpoints written with NumPy 1 and read with NumPy 2, or the reverse. torch 2.5 has no aliases.
    SAFE_GLOBALS += [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (_empty_array, scalar)
        for core in ('core', '_core')
    ]


class RefusedError(Exception):
    """A file would run code when loaded; the text names what."""


class ProgramError(RefusedError):
    """A file is a program, which has no weights to read even if its author is trusted."""


# Ways to run code from a crafted file in spite of weights_only=True, and the first torch without them. torch 2.6 hands
# no such file to torch.jit.load or to its reader of tar files; 2.10 checks what a pickle changes, and storages.
ATTACKS = {'CVE-2025-32434': '2.6', 'CVE-2026-24747': '2.10'}

_all_trusted = _warned = False


def warn_of_attacks(checkpoint: str | os.PathLike) -> None:
    """Warn, once in a process, if the installed torch can be attacked by the pickle that it is to read.

    Every pickle counts as of unknown origin: neither a file's folder nor 8 digits of a hash tell who wrote the file.
    """
    global _warned
    known = [name for name, mended in ATTACKS.items() if Version(torch.__version__) < Version(mended)]
    if known and not _warned:
        _warned = True
        print_log(
            f'checkpoint {checkpoint} is a pickle, and torch {torch.__version__} has {" and ".join(known)}: reading a '
            'crafted pickle can run code. Install torch 2.10 or newer, use a .safetensors file, or read only files '
            'whose authors you trust',
            logger='current',
            level=logging.WARNING,
        )


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
    """What ``torch.save`` wrote. Zip files are mapped into memory, so that processes of a machine share them, unless
    another program packed them. Checksums of zip files are compared first.

    Args:
        path: the file.
        unsafe_pickle: let the file run whatever code it holds.

    Raises:
        RefusedError: the file holds objects other than tensors and plain data.
        ProgramError: the file is a TorchScript program.
    """
    with path.open('rb') as file:
        mmap = file.read(2) == b'PK'
    if mmap:
        names, mmap = check_archive(path)
        if any(name.partition('/')[2] == 'constants.pkl' for name in names):
            raise ProgramError('a TorchScript program')
    if unsafe_pickle or _all_trusted:
        with _code_allowed():
            return torch.load(path, map_location='cpu', weights_only=False, mmap=mmap)
    warn_of_attacks(path)
    torch.serialization.add_safe_globals(SAFE_GLOBALS)  # for good: MMEngine will read the same file
    try:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise _without_advice(error) from error


def _without_advice(error: Exception) -> Exception:
    """What torch found in a file, without its advice to run the file's code."""
    text = str(error)
    if found := re.search(r'GLOBAL (\S+)|((?:attribute|dtype|array) .*) is not allowed', text):
        return RefusedError(found[1] or found[2])
    unpickling = isinstance(error, pickle.UnpicklingError)  # other errors of torch are of damaged files
    if unpickling and re.search('[Uu]nsupported|not allowed|Can only create|unrecognized function', text):
        return RefusedError('objects other than tensors and plain data')
    reason = text.rpartition('WeightsUnpickler error:')[2].strip().partition('\n')[0]
    return pickle.UnpicklingError('its pickle is broken' if re.search('weights_only|allowlist', reason) else reason)


class PickledDtype:
    """Stands in for a pickled ``numpy.dtype``."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        if name not in DTYPES:
            raise RefusedError(f'dtype {name!r}')
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """Stands in for a pickled ``numpy.ndarray``. NumPy's own trusts what a pickle says of memory.

    Attributes:
        array: its numbers, in this machine's byte order.
    """

    def __init__(self, *_: object) -> None:
        self.array = None  # the pickle gives class, shape and dtype of an empty array first

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, content = state
        array = np.frombuffer(content, kind.dtype).reshape(shape, order='F' if fortran else 'C')
        self.array = array.astype(kind.dtype.newbyteorder('='))


class PlainUnpickler(pickle._Unpickler):
    """Loads dicts of arrays. In Python, since the one in C allocates whatever size a damaged file asks for."""

    allowed = {
        'collections.OrderedDict': OrderedDict,
        '_codecs.encode': _codecs.encode,  # bytes in pickles of protocol 2
        'numpy.ndarray': None,  # the class of the array that _reconstruct is called for
        'numpy.dtype': PickledDtype,
        'numpy.core.multiarray._reconstruct': PickledArray,
        'numpy._core.multiarray._reconstruct': PickledArray,
    }

    def find_class(self, module: str, name: str) -> object:
        if f'{module}.{name}' not in self.allowed:
            raise RefusedError(f'{module}.{name}')
        return self.allowed[f'{module}.{name}']

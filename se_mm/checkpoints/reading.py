"""Reading checkpoints without running what is in them."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core.multiarray import _reconstruct, scalar
from packaging.version import Version
from torch import Tensor, nn

from se_mm.utils import InputError


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


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Load a ``.pth`` checkpoint to the CPU; only tensors and plain data are accepted.

    Returns:
        The dict that was saved, with the weights under ``state_dict``.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, or would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'checkpoint {path} does not exist')
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # reading arbitrary bytes can fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError) and re.search('Unsupported global|not allowed', str(error)):
            raise InputError(
                f'checkpoint {path} is refused: it holds objects other than tensors and plain data, which could run '
                f'code when loaded ({reason}). Save its state_dict alone and load that.'
            ) from error
        raise InputError(
            f'checkpoint {path} is damaged or no checkpoint: copy or download it again ({reason})'
        ) from error
    if isinstance(checkpoint, dict) and 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    weights = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise InputError(f'checkpoint {path} holds no weights: expected a state_dict of tensors')
    return checkpoint


def check_fit(weights: dict[str, Tensor], model: nn.Module, path: str, strict: bool = True) -> None:
    """Compare names and shapes of weights with those of a model.

    Args:
        weights: tensors by name.
        model: the model that shall load them.
        path: named in the error.
        strict: every tensor must fit; otherwise one is enough.

    Raises:
        InputError: saying how many tensors do not fit, with examples.
    """
    weights = {name.removeprefix('module.'): tensor for name, tensor in weights.items()}
    expected = model.state_dict()
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f'{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}'
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if strict and not (missing or unexpected or shapes) or not strict and len(missing) + len(shapes) < len(expected):
        return
    parts = [
        f'{len(names)} {what} (e.g. {names[0]})'
        for what, names in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
        if names
    ]
    raise InputError(
        f'checkpoint {path} is for another architecture than the config: of {len(expected)} tensors '
        f'{", ".join(parts)}. Use the config it was trained with.'
    )

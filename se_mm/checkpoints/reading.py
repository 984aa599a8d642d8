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
        torch.serialization.add_safe_globals(SAFE_GLOBALS)  # for good: MMEngine will read the same file
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
    """Load weights into a model to see whether their names and shapes fit.

    Args:
        weights: tensors by name.
        model: the model that shall load them.
        path: named in the error.
        strict: every tensor must fit; otherwise one is enough.

    Raises:
        InputError: saying how many tensors do not fit, with examples.
    """
    if any(name.startswith('module.') for name in weights):
        weights = {name.removeprefix('module.'): tensor for name, tensor in weights.items()}
    expected, shapes = model.state_dict(), []
    try:
        # Loading, since modules may rename old weights of theirs on the way.
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        shapes = [line.strip() for line in str(error).splitlines() if 'size mismatch' in line]
        missing = [name for name in expected if name not in weights]
        unexpected = [name for name in weights if name not in expected]
    fitting = len(weights) - len(unexpected) - len(shapes)
    if fitting > 0 and not (strict and (missing or unexpected or shapes)):
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

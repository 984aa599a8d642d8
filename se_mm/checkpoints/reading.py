"""Reading checkpoints without running what is in them."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn

from se_mm.utils import InputError

from .files import RefusedError, kind_of, read_torch

# Under which keys projects save weights beside other things.
WEIGHTS_KEYS = ('state_dict', 'model', 'model_state_dict', 'net', 'state_dict_ema')


def read_checkpoint(path: str | os.PathLike, unsafe_pickle: bool = False) -> dict:
    """Load a checkpoint to the CPU; only tensors and plain data are accepted.

    The kind of file is told from its content: torch (.pth), safetensors, Caffe (.caffemodel),
    PaddlePaddle (.pdparams), MXNet (.params). torch and safetensors files are mapped into memory,
    not read into it.

    Args:
        path: the file.
        unsafe_pickle: let a torch file run whatever code it holds.

    Returns:
        The dict that was saved, with the weights under ``state_dict``.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, or would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'checkpoint {path} does not exist')
    if path.stat().st_size == 0:
        raise InputError(f'checkpoint {path} is empty: copy or download it again')
    read = kind_of(path)
    if read is None:
        raise InputError(
            f'checkpoint {path} is damaged or no checkpoint: its content is none of torch, safetensors, Caffe, '
            'PaddlePaddle and MXNet'
        )
    try:
        checkpoint = read(path, unsafe_pickle) if read is read_torch else read(path)
    except RefusedError as error:
        trusted = ' If you trust whoever wrote it, init_cfg.unsafe_pickle=True or --unsafe-pickle of the tools runs it.'
        raise InputError(
            f'checkpoint {path} is refused: it holds objects other than tensors and plain data, which could run '
            f'code when loaded ({error}). Have its state_dict saved alone.{trusted if read is read_torch else ""}'
        ) from error
    except ImportError as error:
        raise InputError(f"checkpoint {path} needs {error.name}: pip install 'se_mm[weights]'") from error
    except Exception as error:  # reading arbitrary bytes can fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f'checkpoint {path} is damaged or no checkpoint: copy or download it again ({reason})'
        ) from error
    weights = checkpoint
    if isinstance(checkpoint, dict):
        weights = next((checkpoint[key] for key in WEIGHTS_KEYS if isinstance(checkpoint.get(key), dict)), checkpoint)
    if not isinstance(weights, dict) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise InputError(f'checkpoint {path} holds no weights: expected a state_dict of tensors')
    return dict({} if weights is checkpoint else checkpoint, state_dict=weights)


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

"""Reading a checkpoint: a file of any project becomes a dict with the weights under ``state_dict``."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.runner import CheckpointLoader
from torch import Tensor

from se_mm.utils import InputError

from .download import fetch
from .parsers import parser_of
from .pickles import ProgramError, RefusedError, load_torch

# Under which keys projects save weights beside other things.
WEIGHTS_KEYS = ('state_dict', 'model', 'model_state_dict', 'net', 'state_dict_ema')

LONGEST_NAME = 1000


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
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f'checkpoint {path} does not exist')
    if path.stat().st_size == 0:
        raise InputError(f'checkpoint {path} is empty: copy or download it again')
    content = _parse(path, unsafe_pickle)
    weights = content
    if isinstance(content, dict):
        weights = next((content[key] for key in WEIGHTS_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(weights, dict) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise InputError(f'checkpoint {path} holds no weights: expected a state_dict of tensors')
    if not all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in weights):
        raise InputError(
            f'checkpoint {path} is damaged or no checkpoint: not all names of its tensors are text of up to '
            f'{LONGEST_NAME} characters'
        )
    return dict({} if weights is content else content, state_dict=weights)


def _parse(path: Path, unsafe_pickle: bool) -> object:
    parse = parser_of(path)
    if parse is None:
        raise InputError(
            f'checkpoint {path} is damaged or no checkpoint: its content is none of torch, safetensors, Caffe, '
            'PaddlePaddle and MXNet'
        )
    is_torch = parse is load_torch
    try:
        return parse(path, unsafe_pickle) if is_torch else parse(path)
    except ProgramError as error:
        raise InputError(
            f'checkpoint {path} is refused: it holds {error}, which could run code. Ask its author for the state_dict.'
        ) from error
    except RefusedError as error:
        trusted = (
            ' If you trust the author, use init_cfg.unsafe_pickle=True, or --unsafe-pickle of train.py, test.py or '
            'convert_checkpoint.py.'
        )
        raise InputError(
            f'checkpoint {path} is refused: it holds {error}, which could run code. Save its state_dict alone.'
            f'{trusted if is_torch else ""}'
        ) from error
    except ImportError as error:
        raise InputError(f"checkpoint {path} needs {error.name}: pip install 'se_mm[weights]'") from error
    except Exception as error:  # reading arbitrary bytes can fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]  # errors may quote the file
        raise InputError(
            f'checkpoint {path} is damaged or no checkpoint: copy or download it again ({reason})'
        ) from error


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$')
def load_from_safetensors(filename: str, map_location: str | None = None) -> dict:
    """Let MMEngine read .safetensors files, for ``load_from`` and testing."""
    return read_checkpoint(filename)


@CheckpointLoader.register_scheme(prefixes='se_mm://')
def load_from_package(filename: str, map_location: str | None = None) -> dict:
    """Let MMEngine read the weights that came with this package."""
    return read_checkpoint(fetch(filename))

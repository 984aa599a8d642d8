"""Weights as other projects store them, and files that are released."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from se_mm.utils import InputError, sha256, written_whole

from .architecture import arguments_of
from .formats import TIMM_SE, TIMM_STEM, Weights, rename


def openmmlab_state(weights: Weights) -> dict[str, Tensor]:
    """State dict of a whole classifier: ``backbone.`` and ``head.fc.``, also read by detectors' backbones."""
    state = {f'backbone.{name}': tensor for name, tensor in weights.tensors.items()}
    return state | {f'head.fc.{name}': tensor for name, tensor in weights.head.items()}


def timm_state(weights: Weights, source: str) -> dict[str, Tensor]:
    """State dict of the network of the same architecture in timm (seresnet50, seresnext50_32x4d and so on).

    Raises:
        InputError: timm's networks have no such SE layers, stem or shortcuts.
    """
    arguments = arguments_of(weights.tensors)
    if set(arguments.get('se_cfg', {})) - {'divisor'}:
        raise InputError(f'{source}: timm has no SE layers with {arguments["se_cfg"]}')
    back = [(ours, theirs) for theirs, ours in TIMM_SE + (TIMM_STEM[::-1] if arguments['deep_stem'] else [])]
    if arguments['deep_stem']:
        back = [('stem.7.{p}', 'bn1.{p}'), *back]
    state = {rename(name, back): tensor for name, tensor in weights.tensors.items()}
    return state | {f'fc.{name}': tensor for name, tensor in weights.head.items()}


def save_weights(state: dict[str, Tensor], path: str | os.PathLike, meta: dict | None = None) -> Path:
    """Write a state dict whole or not at all.

    Args:
        state: tensors by name.
        path: ``.safetensors`` for that format, anything else for torch's.
        meta: plain values to keep with it.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = Path(path)
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            if path.suffix == '.safetensors':
                from safetensors.torch import save_file

                save_file(state, temporary, {key: str(value) for key, value in (meta or {}).items()} | {'format': 'pt'})
            else:
                torch.save(dict(meta=meta or {}, state_dict=state), temporary)
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error}') from error
    return path


def with_hash(path: Path) -> Path:
    """Rename a file to OpenMMLab's convention for released ones: NAME-<first 8 digits of its SHA-256>.SUFFIX."""
    return path.rename(path.with_name(f'{path.stem}-{sha256(path)[:8]}{path.suffix}'))

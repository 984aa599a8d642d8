"""Weights as other projects store them, and files that are released."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from se_mm.models.se_layer import squeezed_width
from se_mm.utils import InputError, sha256, written_whole

from .architecture import expected_arguments
from .formats import TIMM_SE, TIMM_STEM, Weights, rename


def openmmlab_state(weights: Weights) -> dict[str, Tensor]:
    """State dict of a whole classifier: ``backbone.`` and ``head.fc.``, also read by detectors' backbones."""
    state = {f'backbone.{name}': tensor for name, tensor in weights.tensors.items()}
    return state | {f'head.fc.{name}': tensor for name, tensor in weights.head.items()}


def timm_state(weights: Weights, source: str) -> dict[str, Tensor]:
    """State dict of the network of the same architecture in timm (seresnet50, seresnext50_32x4d and so on).

    Style and rounding of the stem's pool are taken for timm's where the weights don't say.

    Raises:
        InputError: timm has no such network, or one that computes something else.
    """
    if 'layer1.0.conv2.weight' not in weights.tensors:
        raise InputError(f'{source}: timm has no network of this kind')
    arguments = expected_arguments(weights.tensors, weights.format)
    reasons = []
    if arguments['depth'] is None:
        reasons.append(f'blocks={arguments["blocks"]}')
    if arguments.get('stem_pool_ceil_mode', arguments['type'] == 'SENet'):
        reasons.append('stem_pool_ceil_mode=True')
    if arguments.get('style') == 'caffe':
        reasons.append("style='caffe'")
    if 'bn1.running_mean' not in weights.tensors and 'stem.1.running_mean' not in weights.tensors:
        reasons.append('norms other than batch norm')
    if any(arguments['with_se']):
        if not all(arguments['with_se']):
            reasons.append(f'with_se={arguments["with_se"]}')
        widths = {
            (tensor.shape[1], tensor.shape[0])
            for name, tensor in weights.tensors.items()
            if name.endswith('se_layer.conv1.conv.weight')
        }
        if set(arguments['se_cfg']) - {'divisor'} or any(w != squeezed_width(c, 16, 8) for c, w in widths):
            reasons.append(f'se_ratio={arguments["se_ratio"]}, se_cfg={arguments["se_cfg"]} (its own is divisor=8)')
    if reasons:
        raise InputError(f'{source}: timm has no network with {", ".join(reasons)}')
    back = [(ours, theirs) for theirs, ours in TIMM_SE + (TIMM_STEM[::-1] if arguments['deep_stem'] else [])]
    if arguments['deep_stem']:
        back = [('stem.7.{p}', 'bn1.{p}'), *back]
    state = {rename(name, back): tensor for name, tensor in weights.tensors.items()}
    return state | {f'fc.{name}': tensor for name, tensor in weights.head.items()}


def save_weights(
    state: dict[str, Tensor], path: str | os.PathLike, meta: dict | None = None, hashed: bool = False
) -> Path:
    """Write a state dict whole or not at all.

    Args:
        state: tensors by name.
        path: ``.safetensors`` for that format, anything else for torch's.
        meta: plain values to keep with it.
        hashed: append the first 8 digits of the file's SHA-256 to its name, OpenMMLab's convention for
            released files; ``path`` itself is not written.

    Returns:
        The path of the file.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = Path(path)
    written = path.with_name(f'.{path.name}') if hashed else path
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    try:
        with written_whole(written) as temporary:
            if path.suffix == '.safetensors':
                from safetensors.torch import save_file

                save_file(state, temporary, {k: json.dumps(v) for k, v in (meta or {}).items()} | {'format': 'pt'})
            else:
                torch.save(dict(meta=meta or {}, state_dict=state), temporary)
        if hashed:
            return written.rename(path.with_name(f'{path.stem}-{sha256(written)[:8]}{path.suffix}'))
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error}') from error
    return path

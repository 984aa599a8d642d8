"""Weights with the names of other projects, and the files that they are written to."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from se_mm.models.architecture import is_residual
from se_mm.models.se_layer import squeezed_width
from se_mm.utils import InputError, sha256, written_whole
from se_mm.weights import Weights, expected_arguments
from se_mm.weights.formats import LEGACY, LEGACY_DEEP_STEM, LEGACY_STEM, TIMM_SE, TIMM_STEM
from se_mm.weights.recognition import rename


def openmmlab_state(weights: Weights) -> dict[str, Tensor]:
    """State dict of a whole classifier: ``backbone.`` and ``head.fc.``, also read by detectors' backbones."""
    state = {f'backbone.{name}': tensor for name, tensor in weights.tensors.items()}
    return state | {f'head.fc.{name}': tensor for name, tensor in weights.head.items()}


def timm_state(weights: Weights, source: str) -> dict[str, Tensor]:
    """State dict of the network of timm that computes the same: its legacy ones for the authors' networks.

    Style and rounding of the stem's pool are taken for the defaults here where the weights don't say.

    Raises:
        InputError: timm has no such network.
    """
    if not is_residual(weights.tensors):
        raise InputError(f'{source}: timm has no network of this kind')
    found = expected_arguments(weights)
    deep, senet = found['deep_stem'], found['type'] == 'SENet'
    ceil = found.get('stem_pool_ceil_mode', senet)
    caffe = found.get('style') == 'caffe'
    with_se = any(found['with_se'])
    legacy = with_se and ceil and caffe == (found['type'] == 'SEResNet') and deep == senet and not found.get('avg_down')
    reasons = {
        f'blocks={found["blocks"]}': found['depth'] is None or len(found['blocks']) < 4,
        'stem_pool_ceil_mode=True': ceil and not legacy,
        "style='caffe'": caffe and not legacy,
        'deploy=True': found['deploy'],
        'norms other than batch norm': not found['deploy'] and found['norm'] != 'BN',
        f'se_position={found.get("se_position")!r}': found.get('se_position', 'standard') != 'standard',
        'deformable convolutions': any(found['stage_with_dcn']),
        f'with_se={found["with_se"]}': with_se and any(part is not True for part in found['with_se']),
    }
    if with_se:
        widths = {t.shape[1::-1] for k, t in weights.tensors.items() if k.endswith('se_layer.conv1.conv.weight')}
        divisor = 1 if legacy else 8
        own = set(found['se_cfg']) <= {'divisor'} and all(w == squeezed_width(c, 16, divisor) for c, w in widths)
        rounding = "its legacy networks don't round" if legacy else 'timm rounds squeezed widths to multiples of 8'
        reasons[f'se_ratio={found["se_ratio"]}, se_cfg={found["se_cfg"]} ({rounding})'] = not own
    if any(reasons.values()):
        raise InputError(f'{source}: timm has no network with {", ".join(k for k, v in reasons.items() if v)}')
    if legacy:
        rules, head = LEGACY + (LEGACY_DEEP_STEM if deep else LEGACY_STEM), 'last_linear'
    else:
        rules, head = TIMM_SE + (TIMM_STEM if deep else []), 'fc'
    back = [(own, foreign) for foreign, own in rules]
    state = {rename(name, back): tensor for name, tensor in weights.tensors.items()}
    return state | {f'{head}.{name}': tensor for name, tensor in weights.head.items()}


def _as_bytes(state: dict[str, Tensor], meta: dict, suffix: str) -> bytes:
    if suffix == '.safetensors':
        from safetensors.torch import save

        return save(state, {key: json.dumps(value) for key, value in meta.items()} | {'format': 'pt'})
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=state), buffer)
    return buffer.getvalue()


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
            temporary.write_bytes(_as_bytes(state, meta or {}, path.suffix))
        if hashed:
            return written.rename(path.with_name(f'{path.stem}-{sha256(written)[:8]}{path.suffix}'))
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error}') from error
    return path

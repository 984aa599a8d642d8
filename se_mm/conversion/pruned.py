"""Models with pruned backbones: the parts that see the backbone's channels, and their configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from se_mm.utils import InputError

CONSUMERS = ('neck', 'head', 'bbox_head')  # parts of a model that may see the backbone's channels; the first does


def why_stages_stay(model: nn.Module) -> str | None:
    """Why the channels of a model's stages cannot change; None if they can."""
    if hasattr(model, 'head') or getattr(model, 'with_neck', False):
        return None
    return f'{type(model).__name__} has neither a neck nor a head for classes that could follow the stages'


def forward_consumers(model: nn.Module, images: Tensor) -> object:
    """Run all of a model that sees the channels of its backbone.

    Args:
        model: a classifier or a detector.
        images: (N, 3, H, W).
    """
    return model(images) if hasattr(model, 'head') else model.extract_feat(images)


def consumer_changes(model: Mapping, old: Sequence[int], new: Sequence[int]) -> dict:
    """What a model's config has to change besides its backbone: the input channels of what comes next.

    Args:
        model: config.
        old: channels of each output of the backbone.
        new: those after pruning.
    """
    for part in CONSUMERS:
        given = model.get(part)
        several = isinstance(given, list)
        for i, entry in enumerate(given if several else [given]):
            channels = entry.get('in_channels') if isinstance(entry, Mapping) else None
            if channels is None:
                continue
            whole = isinstance(channels, list | tuple)
            if (list(channels) if whole else channels) != (list(old) if whole else old[-1]):
                return {}
            change = dict(in_channels=list(new) if whole else new[-1])
            return {part: [*given[:i], dict(entry, **change), *given[i + 1 :]] if several else change}
    return {}


@torch.no_grad()
def check_same(built: nn.Module, changed: nn.Module, images: Tensor, config: str) -> None:
    """Give a model the weights of a changed one, and check that both compute the same.

    Args:
        built: of the changed config.
        changed: with fewer channels or SE layers than the config had.
        images: (N, 3, H, W).
        config: name for errors.

    Raises:
        InputError: the weights do not fit, a part of the model cannot take the features, or the features differ.
    """
    built.eval()
    try:
        built.load_state_dict(changed.state_dict())
        forward_consumers(built, images)
    except RuntimeError as error:
        raise InputError(
            f'{config}: the config that would be written does not build the network: '
            f'{str(error).splitlines()[-1].strip()}. Channels of stages stay with --keep stages'
        ) from error
    for a, b in zip(built.backbone(images), changed.backbone(images), strict=True):
        if not torch.allclose(a, b, atol=1e-5 * float(b.abs().max())):
            raise InputError(f'{config}: the network that the config would build computes something else')

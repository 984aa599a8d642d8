"""Models with pruned backbones: the parts that see the backbone's channels, and their configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from se_mm.utils import InputError

CONSUMERS = ('neck', 'head', 'bbox_head')  # parts of a model whose configs may name the backbone's channels


def forward_consumers(model: nn.Module, images: Tensor) -> object:
    """Run all of a model that sees the channels of its backbone.

    Args:
        model: a classifier, or a detector with a neck.
        images: (N, 3, H, W).
    """
    is_detector = any(hasattr(model, part) for part in ('bbox_head', 'roi_head'))
    return model.extract_feat(images) if is_detector else model(images)


def consumer_changes(model: Mapping, old: Sequence[int], new: Sequence[int]) -> dict:
    """What a model's config has to change besides its backbone.

    Args:
        model: config.
        old: channels of each output of the backbone.
        new: those after pruning.
    """
    found = {}
    for part in CONSUMERS:
        given = model.get(part)
        first = given[0] if isinstance(given, list) and given else given
        channels = first.get('in_channels') if isinstance(first, Mapping) else None
        if isinstance(channels, list | tuple) and list(channels) == list(old):
            change = dict(in_channels=list(new))
        elif channels == old[-1]:
            change = dict(in_channels=new[-1])
        else:
            continue
        found[part] = [dict(first, **change), *given[1:]] if isinstance(given, list) else change
    return found


@torch.no_grad()
def check_same(built: nn.Module, pruned: nn.Module, images: Tensor, config: str) -> None:
    """Give a model the weights of a pruned one, and check that both compute the same.

    Args:
        built: of the changed config.
        pruned: of which channels were removed.
        images: (N, 3, H, W).
        config: name for errors.

    Raises:
        InputError: a part of the model does not follow, or the backbones differ.
    """
    try:
        built.load_state_dict(pruned.state_dict())
        forward_consumers(built, images)
    except RuntimeError as error:
        raise InputError(
            f'{config}: a part of the model does not follow the channels of the stages, choose --keep stages: '
            f'{str(error).splitlines()[-1].strip()}'
        ) from error
    for a, b in zip(built.backbone(images), pruned.backbone(images), strict=True):
        if not torch.allclose(a, b, atol=1e-5 * float(b.abs().max())):
            raise InputError(f'{config}: the network that the changed config builds computes something else')

"""Where SE layers start that are added to a network which was trained without them."""

from __future__ import annotations

import torch
from torch import nn

from se_mm.utils import InputError


@torch.no_grad()
def start_as_identity(model: nn.Module) -> None:
    """Let the SE layers of a network change nothing: gates of 0.5 after norms of twice the size.

    Gates near 1 would change as little, but a sigmoid learns a tenth as fast there.

    Raises:
        InputError: a layer whose gate is no sigmoid, or that does not stand after a norm.
    """
    for block in model.modules():
        se_layer = getattr(block, 'se_layer', None)
        if se_layer is None or not hasattr(block, 'se_position'):
            continue
        last = getattr(se_layer, se_layer.layers[-1])
        if block.se_position != 'standard' or type(last.activate) is not nn.Sigmoid:
            raise InputError("init_cfg.fresh_se='identity' needs se_position='standard' and a gate of type Sigmoid")
        for parameter in last.conv.parameters():
            parameter.zero_()
        norm = block.last_norm
        norm.weight.mul_(2)
        norm.bias.mul_(2)

"""Where SE layers start that are added to a network which was trained without them."""

from __future__ import annotations

import torch
from torch import nn

from se_mm.utils import InputError

from .base import Backbone
from .se_layer import SELayer


@torch.no_grad()
def start_as_identity(model: Backbone) -> None:
    """Let the SE layers of a network change nothing: gates of 0.5, and twice the input.

    A unit that owns an SE layer names by its method ``layers_before_se`` the layers whose outputs, or ReLU of these,
    are all that SE gets: twice their weights and biases give twice the input. Gates near 1 would need no such layers,
    but a sigmoid learns a tenth as fast there.

    Raises:
        InputError: of :func:`identity_layers`. The network is as it was.
    """
    last_layers, before = identity_layers(model)
    for parameter in nn.ModuleList(last_layers).parameters():
        parameter.zero_()
    for parameter in nn.ModuleList(before).parameters():
        parameter.mul_(2)


def identity_layers(model: Backbone) -> tuple[list[nn.Module], list[nn.Module]]:
    """The last layers of a network's SE layers, and the layers before these, for :func:`start_as_identity`.

    Raises:
        InputError: gates have a ``gate_bias``; an SE layer's gate is no sigmoid, or it gets something else. All stages
            with such layers are named.
    """
    if model.se_cfg.get('gate_bias') is not None:
        raise InputError(
            "init_cfg.fresh_se='identity' lets gates start at 0.5, se_cfg.gate_bias elsewhere: leave one of both out"
        )
    last_layers, before, unfit = [], [], {}
    for name, unit in model.named_modules():
        for child, se_layer in unit.named_children():
            if not isinstance(se_layer, SELayer):
                continue
            last = getattr(se_layer, se_layer.layers[-1])
            layers = unit.layers_before_se() if child == 'se_layer' and hasattr(unit, 'layers_before_se') else []
            affine = layers and all(getattr(layer, 'weight', None) is not None for layer in layers)
            if not affine or type(last.activate) is not nn.Sigmoid:
                unfit.setdefault(name.partition('.')[0], f'{name}.{child}')
            last_layers.append(last.conv)
            before += layers
    if unfit:
        with_se = tuple(stage not in unfit and on for on, stage in zip(model.with_se, model.stage_names))
        remedy = f'Set with_se={with_se}, or leave fresh_se out' if any(with_se) else 'Leave fresh_se out'
        raise InputError(
            f"init_cfg.fresh_se='identity': {', '.join(unfit.values())} cannot start as the identity. SE needs a gate "
            'of type Sigmoid, and as its input the output of norms or convolutions, with ReLU or without. '
            f'{remedy}, and SE starts at random'
        )
    return last_layers, before

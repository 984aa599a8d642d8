"""How important channels are that could be pruned, on the interface of torch-pruning: a number for each channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from se_mm.models import SELayer
from se_mm.utils import InputError

if TYPE_CHECKING:  # torch-pruning is installed for pruning alone
    from torch_pruning.dependency import Group

IMPORTANCES = ('gate', 'gate-gamma', 'l1', 'taylor', 'random')
GATES = IMPORTANCES[:2]  # that need the gates of a network


class GateImportance:
    """Channels that SE opens widely are important.

    The importance of channel c is the mean over all SE layers that scale c of abs(s), where s is the mean gate of c
    over a data set; with ``gamma`` of abs(s * w), where w is the weight of c in the batch norm before SE. A shortcut
    joins the outputs of all units of a stage, so the importance of a stage's channel is a mean over its units. Channels
    that no SE layer scales, inside of most units, are ranked by their L1 norm.

    "Induced feature importance may be helpful to related fields, e.g. network compression": slides of
    Squeeze-and-Excitation Networks, ILSVRC 2017.

    Args:
        backbone: its SE layers stand where :class:`SEBlock` and other units have them.
        means: s by path of the SE layer in the backbone, (C,).
        gamma: whether to multiply by w.

    Raises:
        InputError: with ``gamma``, no batch norm stands before SE.
    """

    def __init__(self, backbone: nn.Module, means: Mapping[str, Tensor], gamma: bool) -> None:
        from torch_pruning.pruner.importance import GroupMagnitudeImportance

        self.otherwise = GroupMagnitudeImportance(p=1)
        self.scores: dict[nn.Module, Tensor] = {}
        for path, mean in means.items():
            layer = backbone.get_submodule(path)
            self.scores[getattr(layer, layer.layers[-1]).conv] = mean.cpu() * (_gamma(backbone, path) if gamma else 1)

    def __call__(self, group: Group) -> Tensor:
        """A number for each channel of the first convolution of a group."""
        channels = len(group[0].idxs)
        total, layers = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels)
        for item in group:
            scores = self.scores.get(item.dep.target.module)
            if scores is not None and item.dep.handler.__name__ == 'prune_out_channels':
                places = torch.tensor(item.root_idxs)
                total.index_add_(0, places, scores[item.idxs].abs())
                layers.index_add_(0, places, torch.ones(len(places)))
        return total / layers if layers.all() else self.otherwise(group)


def _gamma(backbone: nn.Module, path: str) -> Tensor:
    """Weights (C,) of the batch norm before an SE layer."""
    unit = backbone.get_submodule(path.rpartition('.')[0])
    layers = unit.layers_before_se() if isinstance(getattr(unit, 'se_layer', None), SELayer) else []
    if len(layers) != 1 or not isinstance(layers[0], nn.modules.batchnorm._BatchNorm) or layers[0].weight is None:
        raise InputError(f'--importance gate-gamma: no batch norm with weights stands before {path}; choose gate')
    return layers[0].weight.detach().double().cpu()


def check_importance(name: str, backbone: nn.Module, kept: str | None) -> None:
    """Check that a network has what an importance looks at, before anything is computed.

    Args:
        name: one of ``IMPORTANCES``.
        backbone: to be pruned.
        kept: channels that stay, 'stages' or 'inner'.

    Raises:
        InputError: there are no gates, none of them ranks a channel that may go, or no batch norm stands before SE.
    """
    if name not in GATES:
        return
    paths = [path for path, module in backbone.named_modules() if isinstance(module, SELayer)]
    if not paths:
        raise InputError(f'--importance {name}: the network has no SE layer; choose another one, such as l1')
    inside = getattr(backbone.get_submodule(paths[0].rpartition('.')[0]), 'se_position', None) == '3x3'
    if kept == ('inner' if inside else 'stages'):
        raise InputError(f'--importance {name}: gates rank the channels that --keep {kept} keeps; choose another one')
    if name == 'gate-gamma':
        for path in paths:
            _gamma(backbone, path)


def importance(name: str, backbone: nn.Module, means: Mapping[str, Tensor]) -> Callable[[Group], Tensor]:
    """One of ``IMPORTANCES``.

    'l1' is the L1 norm of all weights of a channel. 'taylor' is the sum of abs(w * g) over all weights w of a channel,
    with gradients g that the parameters have: in first order, the loss changes by at most so much when the channel is
    removed (https://arxiv.org/abs/1906.10771).

    Args:
        name: of the importance.
        backbone, means: of :class:`GateImportance`.
    """
    from torch_pruning.pruner import importance as library

    if name in GATES:
        return GateImportance(backbone, means, gamma=name == 'gate-gamma')
    return dict(
        l1=lambda: library.GroupMagnitudeImportance(p=1),
        taylor=library.GroupTaylorImportance,
        random=library.RandomImportance,
    )[name]()

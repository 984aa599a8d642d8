"""Networks with fewer channels, which ordinary arguments build.

torch-pruning (https://arxiv.org/abs/2301.12900) finds which channels belong together through shortcuts, grouped
convolutions and SE layers, and removes them. Every group of channels loses the same share of them; an importance says
which. The squeezed widths of SE follow from its reduction ratio.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from mmengine.registry import MODELS
from mmengine.utils import is_installed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from se_mm.models import SELayer, SEResNet, SEResNetCIFAR
from se_mm.models.base import Backbone
from se_mm.models.cifar import PaddedShortcut
from se_mm.models.deploy import CONVOLUTIONS, is_norm
from se_mm.models.se_layer import VARIANTS, squeezed_width
from se_mm.ops import is_batch_norm
from se_mm.utils import InputError

if TYPE_CHECKING:  # torch-pruning is installed for pruning alone
    from torch_pruning import DependencyGraph
    from torch_pruning.dependency import Group

STAGES, INNER, SQUEEZED = ORDER = 'stages', 'inner', 'squeezed'  # kinds of channels
KINDS = (STAGES, INNER)  # that can be kept


class Widths(NamedTuple):
    """Numbers of channels of a network.

    Attributes:
        stages: of the stem's output and of each stage's output.
        mid: between the convolutions of each unit, by stage.
    """

    stages: list[int]
    mid: list[list[list[int]]]

    def arguments(self) -> dict:
        """The arguments of the backbone that give it these channels."""
        mid = [[unit[0] if len(unit) == 1 else unit for unit in stage] for stage in self.mid]
        return dict(stage_channels=self.stages, mid_channels=mid)


class Shortcut(nn.Module):
    """A :class:`PaddedShortcut` in operations that torch-pruning follows: the zeros come from a convolution."""

    def __init__(self, channels: int, padded: PaddedShortcut, like: Tensor) -> None:
        super().__init__()
        self.stride, more = padded.stride, padded.channels - channels
        self.zeros = nn.Conv2d(channels, more, 1, bias=False, dtype=like.dtype, device=like.device)
        nn.init.zeros_(self.zeros.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return torch.cat([x, self.zeros(x)], 1)


def why_not_prunable(network: nn.Module) -> str | None:
    """What of a network is not supported; None if it can be pruned."""
    kind = type(network).__name__
    if not isinstance(network, SEResNet | SEResNetCIFAR):
        return f'{kind} is none of SEResNet, SEResNeXt, SENet and SEResNetCIFAR'
    if network.deployed:
        return f'{kind} is deployed: prune the network as it was trained'
    if (used := max(network.out_indices) + 1) < network.num_stages:
        return f'{kind} has stages whose outputs are not used: set num_stages={used}'
    for path, unit in _units(network):
        if any(getattr(unit, 'plugin_names', {}).values()):
            return f'{path} has plugins'
    of_se = {module for layer in network.modules() if isinstance(layer, SELayer) for module in layer.modules()}
    for path, module in network.named_modules():
        if is_norm(module) and not is_batch_norm(module):
            return f'{path} is {type(module).__name__}, and not a batch norm'
        weight = getattr(module, 'weight', None)
        has_matrix = isinstance(weight, Tensor) and weight.dim() > 1
        if has_matrix and type(module) not in CONVOLUTIONS and module not in of_se:
            return f'{path} is {type(module).__name__}, and not an ordinary convolution'
    return None


def _units(network: Backbone) -> Iterator[tuple[str, nn.Module]]:
    """Paths and residual units."""
    for stage in network.stage_names:
        for number, unit in getattr(network, stage).named_children():
            if hasattr(unit, 'last_conv'):
                yield f'{stage}.{number}', unit


def _inner_convs(unit: nn.Module) -> list[nn.Module]:
    """The convolutions of a unit's branch but the last."""
    found = []
    while (conv := getattr(unit, f'conv{len(found) + 1}')) is not unit.last_conv:
        found.append(conv)
    return found


def _stem_convs(network: Backbone) -> list[nn.Module]:
    parts = [part for module in network.stem_modules() for part in module.modules()]
    return [part for part in parts if isinstance(part, nn.Conv2d)]


class PrunableGroup:
    """Channels that can only be removed together.

    Attributes:
        conv: a convolution, whose outputs these channels are.
        kind: ``STAGES`` (also of the stem), ``INNER`` or ``SQUEEZED``.
        channels: number of channels.
        divisor: groups of a grouped convolution among those that have these channels, else 1.
        least: number of channels that have to stay.
        members: each module that has these channels, what removes them, and how many there are.
    """

    def __init__(self, group: Group, kind: str, ratios: dict[nn.Module, int]) -> None:
        self.members = [(dep.target.module, dep.handler, len(places)) for dep, places in group]
        self.conv, self.kind = self.members[0][0], kind
        self.channels = self.conv.out_channels
        convs = [module for module, _, _ in self.members if isinstance(module, nn.Conv2d)]
        self.divisor = max(conv.groups for conv in convs)
        self.least = max(ratios.get(conv, 1) for conv in convs)

    def left(self, share: float, round_to: int) -> int:
        """Number of channels that stay if ``share`` of them goes, a multiple of ``round_to`` and ``divisor``."""
        step = math.lcm(round_to, self.divisor)
        least = math.ceil(self.least / step) * step
        return min(self.channels, max(least, round((1 - share) * self.channels / step) * step))


class Pruner:
    """Removes channels of a network in place.

    Args:
        model: with an attribute ``backbone``, one of those that :func:`why_not_prunable` lets through. Padded shortcuts
            are replaced until :meth:`prune`.
        forward: runs the parts of the model that see channels of the backbone, on images.
        images: (N, 3, H, W), on the device of the model.
        keep: one of ``KINDS``, which stays as it is. Frozen stages stay, too.

    Raises:
        InputError: torch-pruning is missing, or there is nothing that can be removed.
    """

    def __init__(self, model: nn.Module, forward: Callable, images: Tensor, keep: str | None = None) -> None:
        check_torch_pruning()
        self.model, self.network = model, model.backbone
        self.se_layers = [module for module in self.network.modules() if isinstance(module, SELayer)]
        self._replace_shortcuts()
        self.graph = self._traced(forward, images)
        convs = [module for module in self.network.modules() if isinstance(module, nn.Conv2d)]
        self.inputs = {conv: conv.in_channels for conv in convs}
        self.outputs = {conv: conv.out_channels for conv in convs}
        self.groups = list(self._groups(keep))
        if not any(group.kind in KINDS for group in self.groups):
            raise InputError('nothing can be pruned: the stages that are not frozen are all kept')

    def _replace_shortcuts(self) -> None:
        for _, unit in _units(self.network):
            padded = getattr(unit, 'downsample', None)
            if isinstance(padded, PaddedShortcut) and padded.channels > unit.in_channels:
                unit.downsample = Shortcut(unit.in_channels, padded, unit.last_conv.weight)

    def _traced(self, forward: Callable, images: Tensor) -> DependencyGraph:
        """The graph of the model, from the graph of its gradients."""
        from torch_pruning import DependencyGraph

        def with_gradients(model: nn.Module, images: Tensor) -> object:
            model.requires_grad_(True)  # eval() of torch-pruning has frozen stages again
            return forward(model, images)

        flags = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of parameters outside of layers, which no backbone here has
                return DependencyGraph().build_dependency(self.model, images, forward_fn=with_gradients)
        finally:
            for parameter, requires_grad in flags.items():
                parameter.requires_grad_(requires_grad)

    def _groups(self, keep: str | None) -> Iterator[PrunableGroup]:
        kinds = {conv: SQUEEZED for layer in self.se_layers for conv in _convs(layer)[:-1]}
        kinds[_stem_convs(self.network)[-1]] = STAGES
        for _, unit in _units(self.network):
            kinds.update(dict.fromkeys(_inner_convs(unit), INNER))
            kinds[unit.last_conv] = STAGES
        ratios = {_convs(layer)[0]: self.network.se_cfg['ratio'] for layer in self.se_layers}
        kept = self._kept() + [conv for conv, kind in kinds.items() if kind == keep]
        for group in self.graph.get_all_groups(ignored_layers=kept, root_module_types=[nn.Conv2d]):
            outputs = [dep.target.module for dep, _ in group if self.graph.is_out_channel_pruning_fn(dep.handler)]
            found = [kinds[module] for module in outputs if module in kinds]
            yield PrunableGroup(group, min(found, key=ORDER.index, default=STAGES), ratios)

    def _kept(self) -> list[nn.Module]:
        """Modules whose outputs stay: outside of the backbone, of frozen stages, and of a stem but its last one."""
        network = self.network
        backbone = set(network.modules())
        stem = _stem_convs(network)
        kept = [module for module in self.model.modules() if module not in backbone]
        kept += stem if network.frozen_stages >= 0 else stem[:-1]
        for path, unit in _units(network):
            if network.stage_names.index(path.partition('.')[0]) < network.frozen_stages:
                kept += unit.modules()
        return kept

    def targets(self, share: float, round_to: int = 1) -> dict[PrunableGroup, int]:
        """Number of channels that stay of each group if every group loses ``share``; squeezed widths follow."""
        left = {group: group.left(share, round_to) for group in self.groups if group.kind in KINDS}
        inputs = self._count(left, outputs=False)
        options = self.network.se_cfg
        for layer in self.se_layers if 'squeeze_channels' not in options else ():
            convs = _convs(layer)
            width = squeezed_width(inputs[convs[0]], options['ratio'], options.get('divisor', 1))
            for factor, conv in zip(VARIANTS[options.get('variant', 'standard')], convs[:-1], strict=True):
                left.update({group: factor * width for group in self.groups if group.conv is conv})
        return left

    def _count(self, left: dict[PrunableGroup, int], outputs: bool) -> dict[nn.Module, int]:
        """Output or input channels of each convolution if only ``left`` channels of groups stay."""
        counted = self.graph.is_out_channel_pruning_fn if outputs else self.graph.is_in_channel_pruning_fn
        found = dict(self.outputs if outputs else self.inputs)
        for group, number in left.items():
            for module, handler, channels in group.members:
                if module in found and counted(handler):
                    found[module] -= channels * (group.channels - number) // group.channels
        return found

    def widths(self, left: dict[PrunableGroup, int]) -> Widths:
        """The network's channels if only ``left`` channels of groups stay."""
        outputs = self._count(left, outputs=True)
        stages: dict[str, list[list[int]]] = {name: [] for name in self.network.stage_names}
        last = {}
        for path, unit in _units(self.network):
            stage = path.partition('.')[0]
            stages[stage].append([outputs[conv] for conv in _inner_convs(unit)])
            last[stage] = outputs[unit.last_conv]
        stem = outputs[_stem_convs(self.network)[-1]]
        return Widths([stem, *last.values()], list(stages.values()))

    def prune(self, left: dict[PrunableGroup, int], importance: Callable[[Group], Tensor]) -> None:
        """Remove the least important channels of each group until ``left`` stay.

        Args:
            left: of :meth:`targets`.
            importance: of torch-pruning; a number for each channel of a group.
        """
        chosen = []
        for group, number in left.items():
            if number == group.channels:
                continue
            remove = self.graph.get_pruner_of_module(group.conv).prune_out_channels
            whole = self.graph.get_pruning_group(group.conv, remove, list(range(group.channels)))
            scores = (
                importance(whole).cpu().view(group.divisor, -1).mean(0)
            )  # every group of a convolution loses the same
            going = scores.argsort()[: len(scores) - number // group.divisor]
            places = going + len(scores) * torch.arange(group.divisor)[:, None]
            chosen.append((group.conv, remove, sorted(places.flatten().tolist())))
        for conv, remove, places in chosen:
            self.graph.get_pruning_group(conv, remove, places).prune()
        for _, unit in _units(self.network):
            if isinstance(shortcut := getattr(unit, 'downsample', None), Shortcut):
                unit.downsample = PaddedShortcut(unit.last_conv.out_channels, shortcut.stride)


def _convs(layer: SELayer) -> list[nn.Conv2d]:
    return [getattr(layer, name).conv for name in layer.layers]


def check_torch_pruning() -> None:
    """Raise InputError if torch-pruning is not installed."""
    if not is_installed('torch_pruning'):
        raise InputError('pruning needs torch-pruning: pip install "torch-pruning>=1.6,<2"')


def multiply_adds(network: nn.Module, shape: tuple[int, int], channels: int = 3) -> int:
    """Multiply-adds of convolutions and matrix products of a network for one image.

    Args:
        network: stays as it is.
        shape: height and width of the image.
        channels: of the image.
    """
    network = copy.deepcopy(network).eval().to('meta')
    for module in network.modules():
        if hasattr(module, 'fused_se'):
            module.fused_se = False  # which asks for no device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, channels, *shape, device='meta'))
    return counter.get_total_flops() // 2


def smaller_multiply_adds(backbone: dict, widths: Widths, shape: tuple[int, int]) -> int:
    """:func:`multiply_adds` of the backbone of a config with other numbers of channels."""
    options = {key: value for key, value in backbone.items() if key not in ('init_cfg', 'pretrained')}
    with torch.device('meta'):
        network = MODELS.build(dict(options, **widths.arguments(), fused_se=False))
    return multiply_adds(network, shape, backbone.get('in_channels', 3))


def share_for(flops: float, whole: int, count: Callable[[float], int]) -> float:
    """The smallest share of channels to remove that leaves at most ``flops`` of the multiply-adds.

    Args:
        flops: share of ``whole``.
        whole: multiply-adds of the network.
        count: multiply-adds after a share of the channels is removed.

    Raises:
        InputError: no share leaves so little.
    """
    low, high = 0.0, 1.0
    if count(high) > flops * whole:
        raise InputError(f'--flops {flops}: at least {count(high) / whole:.3f} of the multiply-adds stay')
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if count(middle) <= flops * whole else (middle, high)
    return high

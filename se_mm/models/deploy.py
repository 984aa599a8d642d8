"""Networks for inference: batch norms folded into convolutions, the squeeze before the last convolution.

A unit's last convolution, if it is 1x1, is the same linear map W, b at every position. The mean of its output is then
the map of its input's mean: z = W mean(x) + b. So the first layer of the excitation, W1 z + b1, is
(W1 W) mean(x) + (W1 b + b1), a layer of the convolution's input x. That input has a quarter of the channels in a
bottleneck, and the gates are known before the convolution runs. The results are those of the network as it was
trained, up to rounding.

Symbols of Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507, equations 2 and 3.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Conv2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from se_mm.ops import has_hooks, is_batch_norm

from .se_layer import SELayer, VectorConv2d

CONVOLUTIONS = (nn.Conv2d, Conv2d)  # and none of their subclasses, which may compute something else


class Deployed(NamedTuple):
    """What became of a norm or an SE layer.

    Attributes:
        path: of the module in the backbone.
        kind: 'norm' or 'SE'.
        done: one of the three constants below.
        why: why it stays as it is, otherwise empty.
    """

    path: str
    kind: str
    done: str
    why: str = ''


FOLDED, MOVED, STAYS = 'folded', 'squeezes before the last convolution', 'stays'


def fold_gates(network: nn.Module, constant_gates: Mapping[str, Tensor]) -> list[Deployed]:
    """Put constant gates in place of SE layers, see :meth:`Backbone.fold_gates`."""
    if unknown := [path for path in constant_gates if not isinstance(_submodule(network, path), SELayer)]:
        raise ValueError(f'constant_gates: {unknown[0]} is no SE layer of this {type(network).__name__}')
    for path, gates in constant_gates.items():
        _check_width(network, path, gates)
    with torch.no_grad():
        return [_fold_gates(network, path, gates) for path, gates in constant_gates.items()]


def deploy(network: nn.Module, constant_gates: Mapping[str, Tensor]) -> list[Deployed]:
    """Fold what can be folded in a network in evaluation mode, see :meth:`Backbone.switch_to_deploy`."""
    report = fold_gates(network, constant_gates)
    stay = {row.path: row.why for row in report if row.done == STAYS}
    report = [row for row in report if row.done == FOLDED]
    for path, module in list(network.named_modules()):
        for conv, norm in _convolutions_with_norm(module):
            report.append(_fold_norm(module, conv, norm, f'{path}.{norm}'.lstrip('.')))
    seen = {row.path for row in report}
    for path, module in network.named_modules():
        if is_norm(module) and path not in seen:
            report.append(Deployed(path, 'norm', STAYS, 'some norms have no convolution right before them'))
    for path, module in list(network.named_modules()):
        if isinstance(module, SELayer):
            row = _move_squeeze(network.get_submodule(path.rpartition('.')[0]), module, path)
            why = '; '.join(filter(None, (stay.get(path), row.why)))
            report.append(row._replace(why=why))
    return report


def _submodule(network: nn.Module, path: str) -> nn.Module | None:
    return dict(network.named_modules()).get(path)


def _convolutions_with_norm(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a module's convolutions and of the norms of their outputs."""
    if isinstance(module, ConvModule):
        if module.with_norm and module.order.index('conv') + 1 == module.order.index('norm'):
            yield 'conv', module.norm_name
    elif type(module).forward is nn.Sequential.forward:
        children = list(module.named_children())
        for (conv, first), (norm, second) in zip(children, children[1:]):
            if isinstance(first, nn.Conv2d) and is_norm(second):
                yield conv, norm
    elif hasattr(module, 'convolutions_with_norm'):
        yield from module.convolutions_with_norm()


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of any kind."""
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


def why_not_linear(conv: nn.Module) -> str | None:
    """Why a module is no convolution whose weights can be folded into others; None if it is one."""
    if type(conv) not in CONVOLUTIONS:
        return f'{type(conv).__name__} is no ordinary convolution'
    return f'{type(conv).__name__} has hooks' if has_hooks(conv) else None


def why_not_pointwise(conv: nn.Module) -> str | None:
    """Why a unit's last convolution is not the same linear map at every position; None if it is."""
    if why := why_not_linear(conv):
        return why
    if conv.kernel_size != (1, 1) or conv.padding != (0, 0) or conv.stride != (1, 1):
        return f'the last convolution is {conv.kernel_size[0]}x{conv.kernel_size[1]}, and not 1x1'
    return None


def _fold_norm(module: nn.Module, conv_name: str, norm_name: str, path: str) -> Deployed:
    conv, norm = getattr(module, conv_name), getattr(module, norm_name)
    why = why_not_linear(conv)
    if not is_batch_norm(norm) or norm.running_mean is None:
        why = f'{type(norm).__name__} normalises by statistics of the image'
    elif has_hooks(norm):
        why = f'{type(norm).__name__} has hooks'
    if why:
        return Deployed(path, 'norm', STAYS, why)
    exact = fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
    setattr(module, conv_name, exact.to(conv.weight.dtype))
    if isinstance(module, ConvModule):
        delattr(module, norm_name)
        module.norm_name, module.with_norm = None, False
    else:
        setattr(module, norm_name, nn.Identity())
    return Deployed(path, 'norm', FOLDED)


def why_not_before(unit: nn.Module, se_layer: SELayer) -> str | None:
    """Why SE cannot squeeze the input of a unit's last convolution; None if it can."""
    if getattr(unit, 'se_layer', None) is not se_layer:
        return f'{type(unit).__name__} has this SE elsewhere than at its end'
    why = getattr(unit, 'why_not_squeezed_before', lambda: f'{type(unit).__name__} has no convolution right before SE')
    if reason := why():
        return reason
    conv, squeeze = unit.last_conv, se_layer.squeeze
    if type(se_layer) is not SELayer:
        return f'{type(se_layer).__name__} stands in place of SELayer'
    if type(squeeze) is not nn.AdaptiveAvgPool2d:
        return f'SE squeezes by {type(squeeze).__name__}, and not by the mean'
    return why_not_pointwise(conv)


def _move_squeeze(unit: nn.Module, se_layer: SELayer, path: str) -> Deployed:
    if why := why_not_before(unit, se_layer):
        return Deployed(path, 'SE', STAYS, why)
    conv, first = unit.last_conv, se_layer.conv1.conv
    weight = first.weight.flatten(1).double()  # (squeezed, out)
    moved = torch.block_diag(*conv.weight.flatten(1).double().chunk(conv.groups))  # (out, in), of a grouped one too
    bias = None if first.bias is None else first.bias.double()
    if conv.bias is not None:
        shift = weight @ conv.bias.double()
        bias = shift if bias is None else bias + shift
    options = dict(bias=bias is not None, dtype=conv.weight.dtype, device=conv.weight.device)
    layer = VectorConv2d(conv.in_channels, first.out_channels, 1, **options)
    layer.weight.copy_((weight @ moved)[:, :, None, None])
    if bias is not None:
        layer.bias.copy_(bias)
    se_layer.conv1.conv = layer
    unit.squeezes_before = True
    return Deployed(path, 'SE', MOVED)


def _check_width(network: nn.Module, path: str, gates: Tensor) -> None:
    se_layer = network.get_submodule(path)
    channels = getattr(se_layer, se_layer.layers[-1]).conv.out_channels
    if len(gates) != channels:
        raise ValueError(f'constant_gates: {len(gates)} gates for the {channels} channels of {path}')


def _fold_gates(network: nn.Module, path: str, gates: Tensor) -> Deployed:
    unit = network.get_submodule(path.rpartition('.')[0])
    owned = getattr(unit, 'se_layer', None) is network.get_submodule(path) and hasattr(unit, 'layers_before_se')
    layers = unit.layers_before_se() if owned else []
    widths = [len(layer.weight) for layer in layers if getattr(layer, 'weight', None) is not None]
    if not layers or len(widths) < len(layers):
        return Deployed(path, 'SE', STAYS, 'no norm or convolution with weights stands before SE')
    if gates.min() < 0:
        return Deployed(path, 'SE', STAYS, 'some of its gates are below 0')
    summed = sum(widths) > len(gates)  # layers that each have all channels, and no part of them
    for layer, part in zip(layers, [gates] * len(layers) if summed else gates.split(widths)):
        part = part.to(layer.weight)
        layer.weight.mul_(part.view(-1, *[1] * (layer.weight.dim() - 1)))
        if layer.bias is not None:
            layer.bias.mul_(part)
    unit.se_layer = nn.Identity()
    return Deployed(path, 'SE', FOLDED)

"""Residual networks with two branches, which training mixes at random, with SE.

Shake-Shake regularization, Gastaldi, https://arxiv.org/abs/1705.07485; details from the author's code,
https://github.com/xgastaldi/shake-shake.
Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, tables 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from se_mm.registry import MODELS

from .base import Backbone


class PixelPairs(nn.Module):
    """Every ``stride``-th pixel and, as further channels, its neighbour above it and to its left, 0 outside the map."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 2 C, H / stride, W / stride)."""
        neighbours = F.pad(x, (1, 0, 1, 0))[:, :, :-1, :-1]
        return torch.cat([part[:, :, :: self.stride, :: self.stride] for part in (x, neighbours)], 1)


class ShakeBlock(BaseModule):
    """shortcut(x) + se(a branch1(x) + (1 - a) branch2(x)), with a number a of its own for each image.

    In training, a is drawn from 0 to 1. The gradients of the branches have another number b in its place: drawn as well
    ("Shake-Shake-Image"), or 0.5 ("Shake-Even-Image"). In evaluation, a is 0.5.

    SE stands before the sum with the shortcut, as in other residual networks (section 3.3 of the SE paper). The SE
    paper does not say what SE takes of two branches. Here SE takes their mix. Nor does the SE paper name a reduction
    ratio for these networks, which have 16 as others do.

    A basic unit starts with ReLU; a branch has two 3x3 convolutions. A unit of ResNeXt ends with ReLU; a branch has
    1x1, grouped 3x3 and 1x1 convolutions. Where the number of channels changes, the shortcut is a 1x1 convolution with
    norm. That of a basic unit makes one half of its channels from every ``stride``-th pixel, and the other half from
    the pixels beside these.

    Args:
        in_channels, out_channels: channels.
        stride: of the first 3x3 convolution and of the shortcut.
        groups: of ResNeXt's 3x3 convolution, each a quarter of ``out_channels`` wide; None for a basic unit.
        even: whether b is 0.5.
        make_se_layer: makes SE for a number of channels.
        norm_cfg: config of the norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        groups: int | None,
        even: bool,
        make_se_layer: Callable[[int], nn.Module],
        norm_cfg: dict,
    ) -> None:
        super().__init__()
        self.even, self.basic = even, groups is None
        conv = partial(ConvModule, norm_cfg=norm_cfg)
        last = partial(conv, act_cfg=None)
        width = out_channels if self.basic else out_channels // 4 * groups
        for name in ('branch1', 'branch2'):
            if self.basic:
                layers = [conv(in_channels, width, 3, stride, 1), last(width, out_channels, 3, padding=1)]
            else:
                spatial = conv(width, width, 3, stride, 1, groups=groups)
                layers = [conv(in_channels, width, 1), spatial, last(width, out_channels, 1)]
            self.add_module(name, nn.Sequential(*layers))
        self.shortcut = None
        if in_channels != out_channels and self.basic:
            self.shortcut = nn.Sequential(PixelPairs(stride), last(2 * in_channels, out_channels, 1, groups=2))
        elif in_channels != out_channels:
            self.shortcut = last(in_channels, out_channels, 1, stride)
        self.se_layer = make_se_layer(out_channels)

    def mix(self, first: Tensor, second: Tensor) -> Tensor:
        """a first + (1 - a) second, all (N, C, H, W)."""
        if not self.training:
            return (first + second) / 2
        a = torch.rand_like(first[:, :1, :1, :1])
        b = 0.5 if self.even else torch.rand_like(a)
        apart = first - second
        return second + b * apart + (a - b) * apart.detach()  # which has the value of a and the gradients of b

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        start = x.relu() if self.basic else x
        identity = x if self.shortcut is None else self.shortcut(start)
        out = identity + self.se_layer(self.mix(self.branch1(start), self.branch2(start)))
        return out if self.basic else out.relu_()

    def layers_before_se(self) -> list[nn.Module]:
        """For :func:`start_as_identity`."""
        return [branch[-1].norm or branch[-1].conv for branch in (self.branch1, self.branch2)]

    def why_not_squeezed_before(self) -> str:
        """For :meth:`Backbone.switch_to_deploy`."""
        return 'SE takes the mix of two branches'


@MODELS.register_module()
class SEShakeShake(Backbone):
    """SE-Shake-Shake-26 2x96d and SE-Shake-Even-29 2x4x64d for images of 32x32.

    Three stages of strides 1, 2 and 4. A network of basic units ends with ReLU, and its stem has no ReLU.

    Args:
        arch: 'shake_shake26_2x96d' or 'shake_even29_2x4x64d', or a dict with ``blocks`` of a stage, output channels
            ``width`` of the first stage, and ``groups`` and ``even`` of :class:`ShakeBlock`.
        in_channels: channels of the image.
        norm_cfg: config of the norms.
        **kwargs: of :class:`Backbone`.
    """

    arch_settings = dict(
        shake_shake26_2x96d=dict(blocks=4, width=96, groups=None, even=False),
        shake_even29_2x4x64d=dict(blocks=3, width=256, groups=4, even=True),
    )

    def __init__(self, arch: str | dict, in_channels: int = 3, norm_cfg: dict = dict(type='BN'), **kwargs) -> None:
        arch = self.arch_settings.get(arch, arch) if isinstance(arch, str) else arch
        if not isinstance(arch, dict) or set(arch) != {'blocks', 'width', 'groups', 'even'}:
            raise ValueError(
                f'arch={arch!r}: choose one of {sorted(self.arch_settings)}, or give a dict with blocks, width, groups '
                '(None for basic units) and even'
            )
        super().__init__(3, **kwargs)
        basic = arch['groups'] is None
        channels = [16 if basic else 64, *(arch['width'] * 2**i for i in range(3))]
        act_cfg = None if basic else dict(type='ReLU')
        self.stem = ConvModule(in_channels, channels[0], 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        for i in range(3):
            options = dict(make_se_layer=partial(self.make_se_layer, i), norm_cfg=norm_cfg)
            options.update(groups=arch['groups'], even=arch['even'])
            blocks = [ShakeBlock(channels[i], channels[i + 1], stride=2 if i else 1, **options)]
            for _ in range(1, arch['blocks']):
                blocks.append(ShakeBlock(channels[i + 1], channels[i + 1], stride=1, **options))
            if i == 2 and basic:
                blocks.append(nn.ReLU())
            self.add_stage(blocks)

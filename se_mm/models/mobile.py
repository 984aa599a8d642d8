"""SE-MobileNet and SE-ShuffleNet.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, table 3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from mmcv.cnn import ConvModule, build_conv_layer, build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from se_mm.registry import MODELS

from .base import Backbone, ConvSE
from .residual import SEResidual, check_fused_se


@MODELS.register_module()
class SEMobileNet(Backbone):
    """MobileNet, https://arxiv.org/abs/1704.04861, with SE at the end of every separable convolution.

    A depthwise and the following pointwise convolution are the unit that SE recalibrates; with SE
    after the pointwise one's ReLU the network has the paper's 4.7M parameters. Stages have strides
    2 to 32.

    Args:
        widen_factor: factor of all widths.
        in_channels: channels of the image.
        norm_cfg: config of the norms.
        **kwargs: of :class:`Backbone`.
    """

    stage_settings = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # width, blocks, first stride

    def __init__(
        self, widen_factor: float = 1.0, in_channels: int = 3, norm_cfg: dict = dict(type='BN'), **kwargs
    ) -> None:
        super().__init__(len(self.stage_settings), **kwargs)
        width = int(32 * widen_factor)
        self.stem = ConvModule(in_channels, width, 3, stride=2, padding=1, norm_cfg=norm_cfg)
        for i, (channels, num_blocks, stride) in enumerate(self.stage_settings):
            blocks = []
            for j in range(num_blocks):
                cin, width = width, int(channels * widen_factor)
                spatial = dict(stride=stride if j == 0 else 1, padding=1, groups=cin)
                unit = ConvSE(
                    depthwise=ConvModule(cin, cin, 3, norm_cfg=norm_cfg, **spatial),
                    pointwise=ConvModule(cin, width, 1, norm_cfg=norm_cfg),
                    se_layer=self.make_se_layer(i, width),
                )
                blocks.append(unit)
            self.add_stage(blocks)


class ShuffleUnit(SEResidual):
    """Grouped 1x1 convolution, depthwise 3x3, shuffle, grouped 1x1, SE; summed with the input, or with stride 2
    concatenated to the averaged input.

    The paper of the network shuffles before the depthwise convolution, which is the same with its channels
    in another order; this order is that of mmpretrain's weights.

    Args:
        in_channels, out_channels: channels.
        groups: of the 1x1 convolutions.
        first_block: whether it is the network's first unit, whose first convolution is not grouped.
        make_se_layer: makes SE for a number of channels.
        norm_cfg: config of the norms.
        fused_se: of :class:`SEResidual`; units with stride 2 are not fused.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        first_block: bool,
        make_se_layer: Callable[[int], nn.Module],
        norm_cfg: dict,
        fused_se: bool | str,
    ) -> None:
        super().__init__(fused_se=fused_se)
        self.downsamples = in_channels != out_channels
        self.groups, self.first_block = groups, first_block
        width = out_channels // 4
        branch = out_channels - in_channels if self.downsamples else out_channels
        stride = 2 if self.downsamples else 1
        self.reduce = ConvModule(in_channels, width, 1, groups=1 if first_block else groups, norm_cfg=norm_cfg)
        self.depthwise = ConvModule(
            width, width, 3, stride=stride, padding=1, groups=width, norm_cfg=norm_cfg, act_cfg=None
        )
        self.expand = build_conv_layer(None, width, branch, 1, groups=groups, bias=False)
        self.norm = build_norm_layer(norm_cfg, branch)[1]
        self.se_layer = make_se_layer(branch)

    last_conv = property(lambda self: self.expand)

    def convolutions_with_norm(self) -> list[tuple[str, str]]:
        """Names of the convolutions and of the norms of their outputs."""
        return [('expand', 'norm')]

    def why_not_fused(self) -> str | None:
        return 'a concatenation stands in place of the sum' if self.downsamples else super().why_not_fused()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.depthwise(self.reduce(x))  # (N, out_channels / 4, H / stride, W / stride)
        out = out.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)  # shuffled
        if not self.downsamples:
            return self.residual(out, x)
        pooled = F.avg_pool2d(x, 3, stride=2, padding=1)
        branch = self.norm(self.expand(out))
        branch = branch * self.se_layer.gates(out) if self.squeezes_before else self.se_layer(branch)
        return self.relu(torch.cat([pooled, branch], 1))

    def layers_before_se(self) -> list[nn.Module]:
        """For :func:`start_as_identity`."""
        return [self.norm]


@MODELS.register_module()
class SEShuffleNet(Backbone):
    """ShuffleNet, https://arxiv.org/abs/1707.01083, with SE at the end of every unit's branch.

    As in residual networks SE comes before the sum, or before the concatenation in units with a
    stride. Stages have strides 8, 16 and 32.

    Args:
        groups: 1, 2, 3, 4 or 8.
        widen_factor: factor of all widths.
        in_channels: channels of the image.
        norm_cfg: config of the norms.
        fused_se: see :class:`SEResNet`.
        **kwargs: of :class:`Backbone`.
    """

    arch_settings = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # groups: channels of the first stage
    stage_blocks = (4, 8, 4)

    def __init__(
        self,
        groups: int = 3,
        widen_factor: float = 1.0,
        in_channels: int = 3,
        norm_cfg: dict = dict(type='BN'),
        fused_se: bool | str = True,
        **kwargs,
    ) -> None:
        if groups not in self.arch_settings:
            raise ValueError(f'SEShuffleNet has no groups={groups!r}: choose one of {sorted(self.arch_settings)}')
        check_fused_se(fused_se)
        super().__init__(len(self.stage_blocks), **kwargs)
        width = int(24 * widen_factor)
        self.stem = nn.Sequential(
            ConvModule(in_channels, width, 3, stride=2, padding=1, norm_cfg=norm_cfg), nn.MaxPool2d(3, 2, padding=1)
        )
        for i, num_blocks in enumerate(self.stage_blocks):
            blocks = []
            for j in range(num_blocks):
                cin, width = width, int(self.arch_settings[groups] * 2**i * widen_factor)
                unit = ShuffleUnit(
                    cin,
                    width,
                    groups=groups,
                    first_block=i == j == 0,
                    make_se_layer=partial(self.make_se_layer, i),
                    norm_cfg=norm_cfg,
                    fused_se=fused_se,
                )
                blocks.append(unit)
            self.add_stage(blocks)

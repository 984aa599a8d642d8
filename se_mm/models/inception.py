"""SE-BN-Inception and SE-Inception-ResNet-v2.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, figure 2 and table 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from se_mm.registry import MODELS

from .base import Backbone
from .residual import SEResidual, check_fused_se


class CeilMaxPool(nn.Module):
    """3x3 max pool with stride 2, without padding before, of size H / 2 rounded up.

    For even sizes Caffe's ceil rounding; odd sizes are padded by one so that the result fits that of
    a 3x3 convolution with stride 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H / 2, W / 2), rounded up."""
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)
        return F.max_pool2d(x, 3, 2, ceil_mode=True)


class InceptionUnit(BaseModule):
    """Branches concatenated, then SE.

    Args:
        in_channels: channels of the input.
        branches: of each branch the layers one after the other: (channels, kernel, stride) of a
            convolution with norm and ReLU, or a module.
        conv: makes such a convolution.
        make_se_layer: makes SE for a number of channels, None for a unit without SE.
    """

    def __init__(
        self,
        in_channels: int,
        branches: Sequence[Sequence],
        *,
        conv: Callable[..., nn.Module],
        make_se_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        self.out_channels = 0
        for branch in branches:
            width, layers = in_channels, []
            for layer in branch:
                if isinstance(layer, nn.Module):
                    layers.append(layer)
                    continue
                channels, kernel, stride = layer
                layers.append(conv(width, channels, kernel, stride))
                width = channels
            self.branches.append(nn.Sequential(*layers))
            self.out_channels += width
        self.se_layer = nn.Identity() if make_se_layer is None else make_se_layer(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.se_layer(torch.cat([branch(x) for branch in self.branches], 1))

    def layers_before_se(self) -> list[nn.Module]:
        """For :func:`start_as_identity`; none if the unit passes pooled input on."""
        last = [branch[-1] for branch in self.branches]
        return [conv.norm or conv.conv for conv in last] if all(isinstance(m, ConvModule) for m in last) else []


@MODELS.register_module()
class SEBNInception(Backbone):
    """BN-Inception, https://arxiv.org/abs/1502.03167, with SE after every inception unit, as released by the authors.

    Stages have strides 8, 16 and 32, and end before the units with a stride.

    Args:
        in_channels: channels of the image.
        width: factor of all widths.
        norm_cfg: config of the norms.
        **kwargs: of :class:`Backbone`.
    """

    # 1x1; 3x3: reduce, output; double 3x3: reduce, outputs; pool: projection. Units without the first and the
    # last have stride 2 and pass the pooled input on.
    units = {
        '3a': (64, (64, 64), (64, 96), 32),
        '3b': (64, (64, 96), (64, 96), 64),
        '3c': (None, (128, 160), (64, 96), None),
        '4a': (224, (64, 96), (96, 128), 128),
        '4b': (192, (96, 128), (96, 128), 128),
        '4c': (160, (128, 160), (128, 160), 128),
        '4d': (96, (128, 192), (160, 192), 128),
        '4e': (None, (128, 192), (192, 256), None),
        '5a': (352, (192, 320), (160, 224), 128),
        '5b': (352, (192, 320), (192, 224), 128),
    }
    stages = (('3a', '3b'), ('3c', '4a', '4b', '4c', '4d'), ('4e', '5a', '5b'))

    def __init__(self, in_channels: int = 3, width: float = 1.0, norm_cfg: dict = dict(type='BN'), **kwargs) -> None:
        super().__init__(len(self.stages), **kwargs)

        def scaled(channels: int) -> int:
            return int(channels * width)

        def conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Module:
            return ConvModule(cin, cout, kernel, stride=stride, padding=kernel // 2, norm_cfg=norm_cfg)

        self.stem = nn.Sequential(
            conv(in_channels, scaled(64), 7, 2),
            CeilMaxPool(),
            conv(scaled(64), scaled(64), 1),
            conv(scaled(64), scaled(192), 3),
            CeilMaxPool(),
        )
        channels = scaled(192)
        for i, names in enumerate(self.stages):
            blocks = []
            for name in names:
                one, (reduce3, three), (reduce5, five), projection = self.units[name]
                stride = 2 if one is None else 1
                # the released network pools by maximum in its last unit
                pool = (
                    CeilMaxPool() if one is None else nn.MaxPool2d(3, 1, 1) if name == '5b' else nn.AvgPool2d(3, 1, 1)
                )
                branches = [
                    [] if one is None else [(scaled(one), 1, 1)],
                    [(scaled(reduce3), 1, 1), (scaled(three), 3, stride)],
                    [(scaled(reduce5), 1, 1), (scaled(five), 3, 1), (scaled(five), 3, stride)],
                    [pool] if one is None else [pool, (scaled(projection), 1, 1)],
                ]
                branches = [branch for branch in branches if branch]
                unit = InceptionUnit(channels, branches, conv=conv, make_se_layer=partial(self.make_se_layer, i))
                blocks.append(unit)
                channels = blocks[-1].out_channels
            self.add_stage(blocks)


class InceptionResidual(SEResidual):
    """relu(factor * se(conv(cat(branches(x)))) + x); the last of a network has no ReLU.

    Args:
        channels: channels of input and output.
        branches: as of :class:`InceptionUnit`.
        factor: of the branch, which the paper of the network gives as 0.1 to 0.3.
        relu: whether ReLU follows the sum.
        make_se_layer, conv: as of :class:`InceptionUnit`.
        fused_se: of :class:`SEResidual`.
    """

    def __init__(
        self,
        channels: int,
        branches: Sequence[Sequence],
        *,
        factor: float,
        relu: bool,
        make_se_layer: Callable[[int], nn.Module],
        conv: Callable[..., nn.Module],
        fused_se: bool | str,
    ) -> None:
        super().__init__(fused_se=fused_se, factor=factor)
        if not relu:
            self.relu = nn.Identity()
        self.mixed = InceptionUnit(channels, branches, conv=conv)
        self.conv = nn.Conv2d(self.mixed.out_channels, channels, 1)
        self.norm = nn.Identity()
        self.se_layer = make_se_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x and the result are (N, channels, H, W)."""
        return self.residual(self.mixed(x), x)

    def layers_before_se(self) -> list[nn.Module]:
        """For :func:`start_as_identity`."""
        return [self.conv]


@MODELS.register_module()
class SEInceptionResNetV2(Backbone):
    """Inception-ResNet-v2, https://arxiv.org/abs/1602.07261, with SE at the end of every residual branch.

    As in residual networks SE comes before the sum, and here before the branch is scaled down. Stages
    have strides 8, 16 and 32 and 320, 1088 and 1536 channels; images of 299x299 are what it is made for.

    Args:
        in_channels: channels of the image.
        width: factor of all widths.
        blocks: residual units of each stage.
        norm_cfg: config of the norms; released weights have an eps of 0.001.
        fused_se: see :class:`SEResNet`.
        **kwargs: of :class:`Backbone`.
    """

    factors = (0.17, 0.10, 0.20)

    def __init__(
        self,
        in_channels: int = 3,
        width: float = 1.0,
        blocks: Sequence[int] = (10, 20, 10),
        norm_cfg: dict = dict(type='BN', eps=0.001),
        fused_se: bool | str = True,
        **kwargs,
    ) -> None:
        check_fused_se(fused_se)
        super().__init__(3, **kwargs)

        def conv(
            cin: int, cout: int, kernel: int | tuple[int, int], stride: int = 1, padding: bool = True
        ) -> nn.Module:
            size = (kernel, kernel) if isinstance(kernel, int) else kernel
            # only convolutions with a stride go without padding
            pad = tuple(k // 2 for k in size) if padding and stride == 1 else 0
            return ConvModule(cin, cout, size, stride=stride, padding=pad, norm_cfg=norm_cfg)

        def layers(*settings: tuple | nn.Module) -> list:
            return [s if isinstance(s, nn.Module) else (int(s[0] * width), s[1], s[2]) for s in settings]

        w = [int(c * width) for c in (32, 64, 80, 192)]
        self.stem = nn.Sequential(
            conv(in_channels, w[0], 3, 2),
            conv(w[0], w[0], 3, padding=False),
            conv(w[0], w[1], 3),
            nn.MaxPool2d(3, 2),
            conv(w[1], w[2], 1),
            conv(w[2], w[3], 3, padding=False),
            nn.MaxPool2d(3, 2),
        )
        average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        openings = (
            [
                layers((96, 1, 1)),
                layers((48, 1, 1), (64, 5, 1)),
                layers((64, 1, 1), (96, 3, 1), (96, 3, 1)),
                layers(average, (64, 1, 1)),
            ],
            [layers((384, 3, 2)), layers((256, 1, 1), (256, 3, 1), (384, 3, 2)), [nn.MaxPool2d(3, 2)]],
            [
                layers((256, 1, 1), (384, 3, 2)),
                layers((256, 1, 1), (288, 3, 2)),
                layers((256, 1, 1), (288, 3, 1), (320, 3, 2)),
                [nn.MaxPool2d(3, 2)],
            ],
        )
        residuals = (
            [layers((32, 1, 1)), layers((32, 1, 1), (32, 3, 1)), layers((32, 1, 1), (48, 3, 1), (64, 3, 1))],
            [layers((192, 1, 1)), layers((128, 1, 1), (160, (1, 7), 1), (192, (7, 1), 1))],
            [layers((192, 1, 1)), layers((192, 1, 1), (224, (1, 3), 1), (256, (3, 1), 1))],
        )
        channels = w[3]
        for i, (opening, branches) in enumerate(zip(openings, residuals)):
            first = InceptionUnit(channels, opening, conv=conv)
            channels = first.out_channels
            units = []
            for j in range(blocks[i]):
                last = i == 2 and j == blocks[i] - 1
                unit = InceptionResidual(
                    channels,
                    branches,
                    factor=1.0 if last else self.factors[i],
                    relu=not last,
                    make_se_layer=partial(self.make_se_layer, i),
                    conv=conv,
                    fused_se=fused_se,
                )
                units.append(unit)
            if i == 2:
                units.append(conv(channels, int(1536 * width), 1))
            self.add_stage([first, *units])

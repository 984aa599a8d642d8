"""Networks for images of 32x32, with SE.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, tables 4 and 5.
Variations of Squeeze and Excitation networks, https://arxiv.org/abs/2304.06502, table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from se_mm.registry import MODELS

from .base import Backbone
from .blocks import SEBasicBlock
from .checks import check_stage_channels, widths_of_units
from .residual import check_fused_se
from .se_layer import SELayer


class PaddedShortcut(nn.Module):
    """Every second pixel, with zeros as the further channels: the shortcut without parameters of
    https://arxiv.org/abs/1512.03385, section 4.2."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels - x.shape[1]))


class PreActBlock(BaseModule):
    """x + se(branch(x)), every convolution after its norm and ReLU: https://arxiv.org/abs/1603.05027.

    Where size or channels change, the shortcut is a 1x1 convolution of the first norm's output. SE
    before the sum as in other residual networks; there is no norm after the last convolution, so that
    SE is not fused.

    Args:
        in_channels, out_channels: channels.
        stride: of the first convolution, in bottlenecks the 1x1 as in the authors' code.
        kernels: of the convolutions, (3, 3), or (1, 3, 1) for a bottleneck of a quarter of the channels.
        mid_channels: output channels of the convolutions but the last, None for the usual ones.
        projected: whether the shortcut is a convolution even if neither size nor channels change.
        make_se_layer: makes SE for a number of channels.
        norm_cfg: config of the norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        kernels: tuple[int, ...],
        make_se_layer: Callable[[int], nn.Module],
        norm_cfg: dict,
        mid_channels: Sequence[int] | None = None,
        projected: bool = False,
    ) -> None:
        super().__init__()
        width = out_channels if len(kernels) == 2 else out_channels // 4
        widths = [in_channels, *(mid_channels or [width] * (len(kernels) - 1)), out_channels]
        for i, kernel in enumerate(kernels):
            step = stride if i == 0 else 1
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f'norm{i + 1}', build_norm_layer(norm_cfg, widths[i])[1])
            self.add_module(f'conv{i + 1}', conv)
        self.num_convs = len(kernels)
        self.squeezes_before = False
        projected = projected or stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if projected else None
        self.se_layer = make_se_layer(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.norm1(x).relu_()
        identity = x if self.shortcut is None else self.shortcut(out)
        for i in range(1, self.num_convs):
            out = getattr(self, f'norm{i + 1}')(getattr(self, f'conv{i}')(out)).relu_()
        branch = self.last_conv(out)
        return identity + (branch * self.se_layer.gates(out) if self.squeezes_before else self.se_layer(branch))

    @property
    def last_conv(self) -> nn.Module:
        """The convolution before SE."""
        return getattr(self, f'conv{self.num_convs}')

    def convolutions_with_norm(self) -> list[tuple[str, str]]:
        """Names of the convolutions and of the norms of their outputs."""
        return [(f'conv{i}', f'norm{i + 1}') for i in range(1, self.num_convs)]

    def why_not_squeezed_before(self) -> None:
        """Nothing stands between the last convolution and SE, for :meth:`Backbone.switch_to_deploy`."""

    def layers_before_se(self) -> list[nn.Module]:
        """For :func:`start_as_identity`."""
        return [self.last_conv]


@MODELS.register_module()
class SEResNetCIFAR(Backbone):
    """SE-ResNet-8 to -110, SE-ResNet-164 (pre-activation) and SE-WRN-16-8.

    Three stages of strides 1, 2 and 4. A pre-activation network ends with a norm and ReLU.

    Args:
        arch: 'resnet8', 'resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet110', 'resnet164' or 'wrn16_8', or a
            dict with ``block`` ('basic', 'preact' or 'preact_bottleneck'), ``blocks`` of a stage and ``width`` of the
            first one.
        in_channels: channels of the image.
        norm_cfg: config of the norms.
        fused_se: see :class:`SEResNet`; pre-activation units have nothing to fuse.
        stage_channels, mid_channels: see :class:`SEResNet`. Stages of 'basic' do not become narrower, as their
            shortcuts add channels.
        **kwargs: of :class:`Backbone`.
    """

    arch_settings = dict(
        **{f'resnet{6 * n + 2}': dict(block='basic', blocks=n, width=16) for n in (1, 3, 5, 7, 9, 18)},
        resnet164=dict(block='preact_bottleneck', blocks=18, width=64),
        wrn16_8=dict(block='preact', blocks=2, width=128),
    )
    kernels = dict(basic=(3, 3), preact=(3, 3), preact_bottleneck=(1, 3, 1))

    def __init__(
        self,
        arch: str | dict,
        in_channels: int = 3,
        norm_cfg: dict = dict(type='BN'),
        fused_se: bool | str = True,
        stage_channels: Sequence[int] | None = None,
        mid_channels: Sequence[Sequence[int | Sequence[int]]] | None = None,
        **kwargs,
    ) -> None:
        arch = self.arch_settings.get(arch, arch) if isinstance(arch, str) else arch
        complete = isinstance(arch, dict) and {'block', 'blocks', 'width'} == set(arch)
        if not complete or arch['block'] not in self.kernels:
            raise ValueError(
                f'arch={arch!r}: choose one of {sorted(self.arch_settings)}, or give a dict with block '
                f'({", ".join(self.kernels)}), blocks and width'
            )
        check_fused_se(fused_se)
        check_stage_channels(stage_channels, 3)
        super().__init__(3, **kwargs)
        basic = arch['block'] == 'basic'
        kernels = self.kernels[arch['block']]
        mid = widths_of_units(mid_channels, [arch['blocks']] * 3, len(kernels) - 1)
        usual = [16, *(arch['width'] * 2**i for i in range(3))]
        channels = usual if stage_channels is None else stage_channels
        stem = dict(norm_cfg=norm_cfg) if basic else dict(act_cfg=None, bias=False)
        self.stem = ConvModule(in_channels, channels[0], 3, padding=1, **stem)
        for i in range(3):
            blocks = []
            for j in range(arch['blocks']):
                cin, width = channels[i if j == 0 else i + 1], channels[i + 1]
                if basic and width < cin:
                    raise ValueError(f'arch={arch}: {width} channels follow {cin}, and shortcuts can only add channels')
                stride = 2 if i > 0 and j == 0 else 1
                if basic:
                    downsample = PaddedShortcut(width, stride) if stride != 1 or cin != width else None
                    options = dict(se_cfg=self.se_cfg, se_position='standard' if self.next_has_se(i) else None)
                    options.update(norm_cfg=norm_cfg, fused_se=fused_se, mid_channels=mid[i][j])
                    blocks.append(SEBasicBlock(cin, width, stride=stride, downsample=downsample, **options))
                else:
                    options = dict(
                        kernels=kernels, make_se_layer=partial(self.make_se_layer, i), mid_channels=mid[i][j]
                    )
                    options.update(projected=j == 0 and usual[i] != usual[i + 1])
                    blocks.append(PreActBlock(cin, width, stride=stride, norm_cfg=norm_cfg, **options))
            if i == 2 and not basic:
                blocks.append(nn.Sequential(build_norm_layer(norm_cfg, width)[1], nn.ReLU(inplace=True)))
            self.add_stage(blocks)


@MODELS.register_module()
class SECNN(Backbone):
    """The 3-layer network of the variations paper: three convolutions, the second of which may be replaced by SE.

    The paper does not give widths; here they are 32, 32 and 64 with 3x3 kernels, ReLU after each
    layer, max pools after the first two and a hidden layer of 64 before the classifier.

    Args:
        num_classes: number of classes; :meth:`forward` returns logits for images of 32x32. None for
            the feature map.
        with_se: SE in place of the second convolution; False for the plain network.
        **kwargs: of :class:`Backbone`.
    """

    def __init__(self, num_classes: int | None = 10, in_channels: int = 3, with_se: bool = True, **kwargs) -> None:
        super().__init__(1, with_se=with_se, **kwargs)
        self.stem = nn.Sequential(ConvModule(in_channels, 32, 3, padding=1), nn.MaxPool2d(2))
        second = SELayer(32, **self.se_cfg) if self.next_has_se(0) else ConvModule(32, 32, 3, padding=1)
        self.add_stage([second, nn.MaxPool2d(2), ConvModule(32, 64, 3, padding=1)])
        self.classifier = None
        if num_classes is not None:
            self.classifier = nn.Sequential(
                nn.Flatten(), nn.Linear(64 * 8 * 8, 64), nn.ReLU(inplace=True), nn.Linear(64, num_classes)
            )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, 32, 32) to logits (N, num_classes), without classes (N, in_channels, H, W) to a map
        (N, 64, H / 4, W / 4)."""
        outs = super().forward(x)
        return outs if self.classifier is None else (self.classifier(outs[-1]),)

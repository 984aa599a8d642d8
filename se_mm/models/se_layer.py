"""The Squeeze-and-Excitation layer.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, section 3.
"""

from __future__ import annotations

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from se_mm.registry import MODELS


def squeezed_width(channels: int, ratio: int, divisor: int = 1) -> int:
    """Number of channels between the two layers of an SE layer.

    ``channels // ratio`` rounded to the nearest multiple of ``divisor``, not below ``divisor``
    and not below 0.9 of the exact value. Divisor 1 is what the paper and its released networks
    use; mmpretrain and timm round to multiples of 8, which differs for fewer than 128 channels.
    """
    exact = channels // ratio
    width = max(divisor, (exact + divisor // 2) // divisor * divisor)
    return width + divisor if width < 0.9 * exact else width


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution; on 1x1 maps a matrix product, several times faster than a convolution there."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (1, 1):
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


@MODELS.register_module()
class SELayer(BaseModule):
    """Squeeze-and-Excitation: scale every channel by a gate computed from all channels' means.

    In the symbols of the paper: squeeze z = mean of x over H and W (equation 2), excitation
    s = gate(W2 act(W1 z)) (equation 3), output s * x (equation 4). The two fully connected
    layers are 1x1 convolutions named as in mmpretrain.

    Args:
        channels: C, channels of input and output.
        ratio: reduction ratio r of the squeezed width.
        squeeze_channels: the squeezed width itself; overrides ``ratio`` and ``divisor``.
        divisor: the squeezed width is rounded to a multiple of this, see :func:`squeezed_width`.
        bias: whether the two layers have biases.
        conv_cfg: config of the two layers' convolution, None for a ``Conv2d`` made for 1x1 maps.
        act_cfg: configs of act and gate.
        init_cfg: initialisation config.

    Raises:
        ValueError: the squeezed width would be less than one channel.
    """

    def __init__(
        self,
        channels: int,
        ratio: int = 16,
        squeeze_channels: int | None = None,
        divisor: int = 1,
        bias: bool = True,
        conv_cfg: dict | None = None,
        act_cfg: tuple[dict, dict] = (dict(type='ReLU'), dict(type='Sigmoid')),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if squeeze_channels is None:
            if not 1 <= ratio <= channels:
                raise ValueError(f'se_ratio={ratio} leaves no channel of {channels}: choose 1 to {channels}')
            squeeze_channels = squeezed_width(channels, ratio, divisor)
        act, gate = act_cfg
        conv_cfg = conv_cfg or dict(type=PointwiseConv2d)
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = ConvModule(channels, squeeze_channels, 1, bias=bias, conv_cfg=conv_cfg, act_cfg=act)
        self.conv2 = ConvModule(squeeze_channels, channels, 1, bias=bias, conv_cfg=conv_cfg, act_cfg=gate)

    def excite(self, z: Tensor) -> Tensor:
        """The gates s for the squeezed z, both (N, C, 1, 1)."""
        return self.conv2(self.conv1(z))

    def scale(self, x: Tensor) -> Tensor:
        """The gates s of shape (N, C, 1, 1) for ``x`` of shape (N, C, H, W)."""
        return self.excite(self.global_avgpool(x))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x)

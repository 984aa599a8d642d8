"""The Squeeze-and-Excitation layer, its ablations and its variants.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, sections 3 and 6.
Variations of Squeeze and Excitation networks, https://arxiv.org/abs/2304.06502.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from se_mm.ops import Excitation, has_hooks, is_exporting
from se_mm.registry import MODELS

from .checks import check_act_cfg, check_whole

# Widths between the layers, in squeezed widths.
VARIANTS = dict(
    standard=(1,),
    slow_squeeze=(2, 1),
    slow_excite=(1, 2),
    slow_squeeze_excite=(2, 1, 2),
    bump=(1, 1),
)
SQUEEZES = dict(avg=lambda: nn.AdaptiveAvgPool2d(1), max=lambda: nn.AdaptiveMaxPool2d(1), none=nn.Identity)


def squeezed_width(channels: int, ratio: int, divisor: int = 1) -> int:
    """Number of channels between the two layers of an SE layer.

    ``channels // ratio`` rounded to the nearest multiple of ``divisor``, not below ``divisor``
    and not below 0.9 of the exact value. Divisor 1 is what the paper and its released networks
    use; mmpretrain and timm round to multiples of 8, which differs for fewer than 128 channels.
    """
    exact = channels // ratio
    width = max(divisor, (exact + divisor // 2) // divisor * divisor)
    return width + divisor if width < 0.9 * exact else width


class VectorConv2d(nn.Conv2d):
    """1x1 convolution of vectors (N, C): a matrix product, several times faster than with maps of one position."""

    maps = False  # whether it computes maps all the same

    def forward(self, z: Tensor) -> Tensor:
        if self.maps:
            return super().forward(z)
        weight = self.weight.flatten(1)
        if is_vector_in_generated_code(z):
            product = (z * weight).sum(1)[None]
            return product if self.bias is None else product + self.bias
        return F.linear(z, weight, self.bias)


def is_vector_in_generated_code(z: Tensor) -> bool:
    """Whether torch.compile makes inference of one image on a CPU, z (1, C).

    There the sums of products, which become part of the generated code, take less time than a library's product.
    """
    if not torch.compiler.is_compiling() or is_exporting() or torch.is_grad_enabled():
        return False
    return z.device.type == 'cpu' and not torch.is_autocast_enabled('cpu') and len(z) == 1


class FullyConnected(nn.Sequential):
    """A fully connected layer with activation; its parts are named as in mmcv's ConvModule.

    Args:
        conv: a 1x1 convolution.
        act_cfg: config of the activation.
    """

    def __init__(self, conv: nn.Conv2d, act_cfg: dict) -> None:
        super().__init__(OrderedDict(conv=conv, activate=build_activation_layer(act_cfg)))

    def forward(self, z: Tensor) -> Tensor:  # as Sequential does, in half the time
        return self.activate(self.conv(z))


@MODELS.register_module()
class SELayer(BaseModule):
    """Squeeze-and-Excitation: scale every channel by a gate computed from all channels' means.

    In the symbols of the paper: squeeze z = mean of x over H and W (equation 2), excitation
    s = gate(W2 act(W1 z)) (equation 3), output s * x (equation 4). The fully connected layers,
    conv1, conv2 and so on, are 1x1 convolutions named as in mmpretrain.

    Args:
        channels: C, channels of input and output.
        in_channels: C by the name under which OpenMMLab's backbones give it to plugins; in place of ``channels``.
        ratio: reduction ratio r of the squeezed width.
        squeeze_channels: the squeezed width itself; overrides ``ratio`` and ``divisor``.
        divisor: the squeezed width is rounded to a multiple of this, see :func:`squeezed_width`.
        bias: whether the layers have biases.
        act_cfg: configs of act and gate. The paper compares gates of type Sigmoid, ReLU and Tanh
            (section 6).
        variant: widths between the layers, in squeezed widths: 'standard' (1), 'slow_squeeze'
            (2, 1), 'slow_excite' (1, 2), 'slow_squeeze_excite' (2, 1, 2) or 'bump' (1, 1).
        squeeze: 'avg', 'max', or 'none', which leaves out the pooling and computes gates for every
            position ("NoSqueeze", section 6).
        gate_bias: value that the biases of the last layer start from; a sigmoid makes gates near 0.5 of 0, and gates
            near 0.88 of 2. None leaves the biases as the network initialises them. Weight decay takes biases back to 0,
            unless the optimizer leaves them out:
            ``paramwise_cfg=dict(custom_keys={'se_layer.conv2.conv.bias': dict(decay_mult=0.0)})``.
        init_cfg: initialisation config.

    Raises:
        ValueError: no channels, or both; a number that is no whole number from 1; unknown variant or squeeze; not
            two activations; the squeezed width would be less than one channel; ``gate_bias`` without biases.
    """

    maps = False  # whether the gates are computed as maps (N, C, 1, 1)
    observers: tuple[Callable[[Tensor], object], ...] = ()  # are called with the gates, also with those of kernels

    def __init__(
        self,
        channels: int | None = None,
        ratio: int = 16,
        squeeze_channels: int | None = None,
        divisor: int = 1,
        bias: bool = True,
        act_cfg: tuple[dict, dict] = (dict(type='ReLU'), dict(type='Sigmoid')),
        variant: str = 'standard',
        squeeze: str = 'avg',
        init_cfg: dict | list[dict] | None = None,
        in_channels: int | None = None,
        gate_bias: float | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if gate_bias is not None and not bias:
            raise ValueError(f'gate_bias={gate_bias!r} of SE: there are no biases, set bias=True or leave it out')
        if (channels is None) == (in_channels is None):
            raise ValueError('SELayer: give channels (in_channels means the same), a whole number from 1')
        channels = in_channels if channels is None else channels
        check_whole(channels=channels, se_ratio=ratio, divisor=divisor)
        if variant not in VARIANTS:
            raise ValueError(f'variant={variant!r} of SE: choose one of {tuple(VARIANTS)}')
        if squeeze not in SQUEEZES:
            raise ValueError(f'squeeze={squeeze!r} of SE: choose one of {tuple(SQUEEZES)}')
        if squeeze_channels is None:
            if ratio > channels:
                raise ValueError(f'se_ratio={ratio} leaves no channel of {channels}: choose 1 to {channels}')
            squeeze_channels = squeezed_width(channels, ratio, divisor)
        else:
            check_whole(squeeze_channels=squeeze_channels)
        check_act_cfg(act_cfg)
        act, gate = act_cfg
        self.squeeze = SQUEEZES[squeeze]()
        conv_type = nn.Conv2d if squeeze == 'none' else VectorConv2d
        self.layers = []
        widths = [channels, *(factor * squeeze_channels for factor in VARIANTS[variant]), channels]
        for i, (cin, cout) in enumerate(zip(widths, widths[1:]), 1):
            conv = conv_type(cin, cout, 1, bias=bias)
            self.add_module(f'conv{i}', FullyConnected(conv, gate if i == len(widths) - 1 else act))
            self.layers.append(f'conv{i}')
        self.gate_bias = gate_bias
        self._start_gates()

    def _start_gates(self) -> None:
        if self.gate_bias is not None:
            nn.init.constant_(getattr(self, self.layers[-1]).conv.bias, self.gate_bias)

    def init_weights(self) -> None:
        """Initialise; the network that the layer is part of has already done so by its own ``init_cfg``."""
        first = not self.is_init
        super().init_weights()
        if first:
            self._start_gates()

    def excite(self, z: Tensor) -> Tensor:
        """The gates s for the squeezed z, both (N, C), or both maps after :meth:`use_maps` and without squeeze."""
        for name in self.layers:
            z = getattr(self, name)(z)
        for observe in self.observers:
            observe(z)
        return z

    def as_excitation(self, factor: float) -> Excitation | None:
        """The parameters of the gates times a factor, None if they are not the gates of the paper or have hooks."""
        if len(self.layers) != 2 or type(self).excite is not SELayer.excite:
            return None
        first, last = self.conv1, self.conv2
        kinds = [type(module) for module in (first.conv, last.conv, first.activate, last.activate)]
        if kinds != [VectorConv2d, VectorConv2d, nn.ReLU, nn.Sigmoid]:
            return None
        if any(has_hooks(module) for module in (first, last, *first, *last)):
            return None
        w1, w2 = first.conv.weight.flatten(1), last.conv.weight.flatten(1)
        return Excitation(w1, first.conv.bias, w2, last.conv.bias, factor, self.observers)

    def gates(self, x: Tensor) -> Tensor:
        """The gates s for a map (N, C, H, W): (N, C, 1, 1), or without squeeze (N, C, H, W)."""
        z = self.squeeze(x)
        if self.maps or isinstance(self.squeeze, nn.Identity):
            return self.excite(z)
        return self.excite(z.flatten(1))[:, :, None, None]

    def use_maps(self) -> None:
        """Compute the gates as maps (N, C, 1, 1) by convolutions, the form that runtimes other than torch look for."""
        self.maps = True
        for name in self.layers:
            getattr(self, name).conv.maps = True

    def scale(self, x: Tensor) -> Tensor:
        """Former name of :meth:`gates`."""
        return self.gates(x)

    def forward(self, x: Tensor) -> Tensor:
        """x times its gates, both (N, C, H, W)."""
        return x * self.gates(x)

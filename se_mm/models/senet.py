"""SENet-154.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, appendix.
"""

from __future__ import annotations

from se_mm.registry import MODELS

from .blocks import SEBottleneck
from .resnet import SEResNet, SEResNeXt


class SENetBottleneck(SEBottleneck):
    """Of SENet-154: the first convolution has half of the usual channels (appendix of the paper)."""

    @classmethod
    def usual_widths(cls, width: int) -> tuple[int, ...]:
        return width // 2, width


@MODELS.register_module()
class SENet(SEResNeXt):
    """SENet-154, the network of ILSVRC 2017: SE-ResNeXt-152 64x4d with half the channels in the first convolution of
    a bottleneck, three 3x3 convolutions as stem, and 3x3 convolutions in the shortcuts with a stride.

    Defaults are those of the released network. A dropout of 0.2 stands before its
    classifier: :class:`AveragePoolingDropout`.
    """

    arch_settings = {154: (SENetBottleneck, SEResNet.arch_settings[152][1])}
    downsample_kernel = 3

    def __init__(
        self,
        depth: int = 154,
        groups: int = 64,
        stem_channels: int = 128,
        deep_stem: bool = True,
        stem_pool_ceil_mode: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(
            depth,
            groups=groups,
            stem_channels=stem_channels,
            deep_stem=deep_stem,
            stem_pool_ceil_mode=stem_pool_ceil_mode,
            **kwargs,
        )

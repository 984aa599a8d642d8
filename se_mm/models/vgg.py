"""SE-VGG.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, sections 3 and 5.1.
"""

from __future__ import annotations

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from se_mm.registry import MODELS

from .base import Backbone, ConvSE
from .checks import check_stages


@MODELS.register_module()
class SEVGG(Backbone):
    """VGG with batch norm and SE after the non-linearity that follows each convolution.

    Networks without shortcuts have SE after every non-linearity (section 3.3 of the paper). A stage
    ends with its max pool; five stages have strides 2 to 32.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: with a number, the three fully connected layers follow and :meth:`forward` returns
            logits; they take images of 224x224 only. None for feature maps.
        in_channels: channels of the image.
        base_channels: channels of the first stage.
        norm_cfg: config of the norms.
        num_stages: number of stages, 1 to 5.
        **kwargs: of :class:`Backbone`.
    """

    arch_settings = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

    def __init__(
        self,
        depth: int = 16,
        num_classes: int | None = None,
        in_channels: int = 3,
        base_channels: int = 64,
        norm_cfg: dict = dict(type='BN'),
        num_stages: int = 5,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(f'SEVGG has no depth {depth!r}: choose one of {sorted(self.arch_settings)}')
        if num_classes is not None and kwargs.get('out_indices') is not None:
            raise ValueError('num_classes and out_indices cannot be given at the same time')
        check_stages(num_stages, 5)
        if num_classes is not None and num_stages != 5:
            raise ValueError(f'num_stages={num_stages}: the fully connected layers of num_classes need all 5')
        super().__init__(num_stages, **kwargs)
        self.stem = nn.Identity()
        width = in_channels
        for i, num_convs in enumerate(self.arch_settings[depth][:num_stages]):
            blocks: list[nn.Module] = []
            for _ in range(num_convs):
                cin, width = width, base_channels * min(2**i, 8)
                conv = ConvModule(cin, width, 3, padding=1, norm_cfg=norm_cfg)
                blocks.append(ConvSE(conv=conv, se_layer=self.make_se_layer(i, width)))
            self.add_stage([*blocks, nn.MaxPool2d(2, 2)])
        self.classifier = None
        if num_classes is not None:
            self.classifier = nn.Sequential(
                nn.Flatten(),
                *(nn.Linear(width * 49, 4096), nn.ReLU(True), nn.Dropout(0.5)),
                *(nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(0.5)),
                nn.Linear(4096, num_classes),
            )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W) to feature maps, or to a tuple of logits (N, num_classes)."""
        if self.classifier is not None and isinstance(x, Tensor) and x.shape[2:] != (224, 224):
            raise ValueError(f'images of {tuple(x.shape[2:])}: the fully connected layers of SEVGG take 224x224')
        outs = super().forward(x)
        return outs if self.classifier is None else (self.classifier(outs[-1]),)

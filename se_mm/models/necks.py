"""What stands between a backbone and a classifier."""

from __future__ import annotations

from mmengine.model import BaseModule
from torch import Tensor, nn

from se_mm.registry import MODELS


@MODELS.register_module()
class AveragePoolingDropout(BaseModule):
    """Global average pooling and dropout, as before the classifier of SENet-154 and Inception-ResNet-v2.

    Args:
        p: probability of dropping a channel.
    """

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p)

    def forward(self, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Feature maps (N, C, H, W) to vectors (N, C)."""
        return tuple(self.dropout(feature.mean((2, 3))) for feature in x)

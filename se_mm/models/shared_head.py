"""A stage of SE-ResNet as the head that detectors run on every region.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, evaluates Faster R-CNN of that form in its
first version: the fourth stage of units stands behind the pooling of regions.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from se_mm.registry import MODELS

from .blocks import SEBasicBlock
from .resnet import SEResNet, SEResNeXt

# Arguments of backbones that a stage alone has no use for.
OF_BACKBONES = (
    'in_channels',
    'stem_channels',
    'deep_stem',
    'stem_pool_ceil_mode',
    'num_stages',
    'strides',
    'dilations',
    'out_indices',
    'frozen_stages',
    'stage_with_dcn',
    'contract_dilation',
    'multi_grid',
)


@MODELS.register_module()
class SEResLayer(SEResNeXt):
    """One stage of SE-ResNet or SE-ResNeXt, for ``roi_head.shared_head`` of C4 detectors: mmdet's ResLayer with SE.

    Parameters are named as in the whole network, e.g. ``layer4.0.conv1.weight``. ``init_cfg`` takes checkpoints of
    whole backbones, of which the stage is loaded.

    Args:
        depth: of the network, see :class:`SEResNet`.
        stage: which of its stages: 1, 2 or 3, from 0.
        stride: of the stage's first unit.
        dilation: of the stage's 3x3 convolutions.
        groups: see :class:`SEResNeXt`; 1 for SE-ResNet.
        dcn: config of deformable convolution in bottlenecks.
        with_se: whether units have SE: one value for all, or a sequence of one for each unit.
        zero_init_residual: see :class:`SEResNet`; off, as in mmdet's ResLayer.
        extra_norm: a norm after the last unit, as in mmpretrain's ResLayerExtraNorm.
        **kwargs: arguments of :class:`SEResNeXt` that units have: ``style``, ``norm_cfg``, ``norm_eval``, ``with_cp``,
            ``se_ratio`` and so on. ``stage_channels`` and ``mid_channels`` have entries for the stages before, too.

    Raises:
        ValueError: an argument is outside its choices, which the message names.
        TypeError: an argument belongs to the backbone alone.
    """

    arch_settings = SEResNet.arch_settings

    def __init__(
        self,
        depth: int,
        stage: int = 3,
        stride: int = 2,
        dilation: int = 1,
        groups: int = 1,
        dcn: dict | None = None,
        with_se: bool | Sequence[bool] = True,
        zero_init_residual: bool = False,
        extra_norm: bool = False,
        **kwargs,
    ) -> None:
        if stage not in (1, 2, 3):
            raise ValueError(f'stage={stage!r}: choose 1, 2 or 3')
        if others := [key for key in OF_BACKBONES if key in kwargs]:
            raise TypeError(f'a shared head has no argument {others[0]}, which belongs to the backbone')
        block, blocks = self.arch_settings.get(depth, (None, None))
        if block is SEBasicBlock and groups != 1:
            raise ValueError(f'groups={groups} needs bottlenecks: depth {depth} has none, choose 50 or more')
        if blocks and isinstance(with_se, Sequence) and len(with_se) != blocks[stage]:
            raise ValueError(f'with_se={tuple(with_se)} needs {blocks[stage]} entries, or one value for all')
        before = (False,) * stage
        super().__init__(
            depth,
            groups=groups,
            num_stages=stage + 1,
            strides=(1, 2, 2)[:stage] + (stride,),
            dilations=(1,) * stage + (dilation,),
            out_indices=(stage,),
            dcn=dcn,
            stage_with_dcn=(*before, dcn is not None),
            with_se=(*before, with_se),
            zero_init_residual=zero_init_residual,
            **kwargs,
        )
        self.stage = stage
        self._keep_last_stage()
        if extra_norm:
            self.norm = build_norm_layer(self.norm_cfg, self.feat_dim)[1]
        if self.deployed:
            self.eval().requires_grad_(False)

    def _keep_last_stage(self) -> None:
        """Drop what runs before the regions are pooled: that is the backbone's."""
        last = self.stage_names[-1]
        for name in [name for name, _ in self.named_children() if name != last]:
            delattr(self, name)
        self.num_stages, self.stage_names, self.out_indices = 1, [last], (0,)
        self.with_se, self._se_paths = self.with_se[-1:], self._se_paths[-1:]

    def stem_modules(self) -> list[nn.Module]:
        return []

    def convolutions_with_norm(self) -> list[tuple[str, str]]:
        return []

    def forward(self, x: Tensor) -> Tensor:
        """Regions (N, C, H, W) of the stage before to (N, C', H / stride, W / stride)."""
        x = getattr(self, self.stage_names[0])(x)
        return self.norm(x) if hasattr(self, 'norm') else x

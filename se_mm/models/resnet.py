"""SE-ResNet and SE-ResNeXt.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, table 1 and appendix.
Arguments are those of mmdet's ResNet and ResNeXt; parameters are named as in mmpretrain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmengine.logging import print_log
from torch import Tensor, nn

from se_mm.registry import MODELS

from .base import Backbone
from .blocks import SEBasicBlock, SEBottleneck, check_se_position
from .checks import (
    check_act_cfg,
    check_block,
    check_plugins,
    check_stage_channels,
    check_stages,
    checkpoint_init_cfg,
    widths_of_units,
)
from .residual import check_fused_se

PLUGIN_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')


@MODELS.register_module()
class SEResNet(Backbone):
    """SE-ResNet: a residual network with an SE layer at the end of every branch.

    Args:
        depth: 18, 34, 50, 101 or 152; 140 is Places-365-CNN (table 6 of the paper), with a deep stem of 128 channels.
        in_channels: channels of the image.
        stem_channels: channels of the stem, None for ``base_channels``.
        base_channels: channels of the first stage before expansion.
        num_stages: number of stages, 1 to 4.
        strides: stride of each stage's first block.
        dilations: dilation of each stage.
        out_indices: stages whose outputs are returned, from 0.
        style: 'pytorch', stride in a bottleneck's 3x3 convolution, or 'caffe', in its first 1x1
            (the network of the paper and of its released weights).
        deep_stem: three 3x3 convolutions instead of one 7x7.
        avg_down: average pooling before a stride-1 convolution in the shortcuts.
        frozen_stages: 0 freezes the stem, n also the first n stages, -1 nothing.
        conv_cfg: config of the convolutions.
        norm_cfg: config of the norms.
        norm_eval: keep batch norms in eval mode while training. True as in mmdet; only
            pretrained weights make sense of it.
        dcn: config of deformable convolution in bottlenecks. With ``fallback_on_stride`` all of them
            that have a stride stay ordinary; mmdet's ResNet does that for its first one only.
        stage_with_dcn: stages that use ``dcn``.
        plugins: dicts with ``cfg``, ``position`` ('after_conv1' to 'after_conv3') and optionally
            ``stages``, see mmdet's ResNet. Those after the last convolution come before SE.
        with_cp: recompute blocks in backward instead of storing their activations.
        zero_init_residual: initialise the last norm of every branch with 0; not with gates that are 0 at 0.
        pretrained: deprecated path of a checkpoint, use ``init_cfg``.
        init_cfg: initialisation config; None for He initialisation.
        contract_dilation: halve the dilation in the first block of stages that have one (mmsegmentation's argument).
        multi_grid: dilation of each block of the last stage, None for ``dilations`` (mmsegmentation's argument).
        drop_path_rate: stochastic depth, rising linearly from 0 to this rate at the last block.
        with_se: whether units have SE: one value for all, or for each stage one value or a sequence of one value for
            each of its units.
        se_ratio: reduction ratio r of SE.
        se_cfg: further arguments of :class:`SELayer`, e.g. ``dict(variant='bump')``.
        se_position: where SE stands in a block, see :class:`SEBlock`.
        fused_se: fuse the last batch norm of a branch, SE, sum and ReLU where possible: the same results
            with less memory and time. Blocks say by ``why_not_fused()`` what is in the way. 'torch' or
            'triton' insists on that backend of :func:`se_mm.ops.se_tail`, 'torch' on the CPU also where
            maps are so small that fusing saves memory but no time.
        stem_pool_ceil_mode: rounding of the stem's max pool. False pads by one and rounds down;
            True does not pad and rounds up, which weights that came from Caffe need.
        deploy: build the network for weights that :meth:`switch_to_deploy` has folded.
        expansion: output channels of a bottleneck in those of its 3x3 convolution, None for 4 (mmpretrain's
            argument). Wide residual networks have ``base_channels=128, expansion=2, stem_channels=64``.
        stage_channels: output channels of the stem and of each stage, as tools/prune.py writes them; None for those
            of the architecture.
        mid_channels: output channels of the convolutions of each unit but the last, for each stage one entry for each
            unit: a number, or one for each of these convolutions. None for those of the architecture.

    Raises:
        ValueError: an argument is outside its choices, which the message names.
        TypeError: ``pretrained`` is no path.
    """

    arch_settings = {
        18: (SEBasicBlock, (2, 2, 2, 2)),
        34: (SEBasicBlock, (3, 4, 6, 3)),
        50: (SEBottleneck, (3, 4, 6, 3)),
        101: (SEBottleneck, (3, 4, 23, 3)),
        140: (SEBottleneck, (8, 12, 23, 3)),  # Places-365-CNN
        152: (SEBottleneck, (3, 8, 36, 3)),
    }
    downsample_kernel = 1  # of shortcuts with a stride

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = 'pytorch',
        deep_stem: bool = False,
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        norm_eval: bool = True,
        dcn: dict | None = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        plugins: list[dict] | None = None,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        pretrained: str | None = None,
        init_cfg: dict | list[dict] | None = None,
        contract_dilation: bool = False,
        multi_grid: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        with_se: bool | Sequence[bool | Sequence[bool]] = True,
        se_ratio: int = 16,
        se_cfg: dict | None = None,
        se_position: str = 'standard',
        fused_se: bool | str = True,
        stem_pool_ceil_mode: bool = False,
        deploy: bool = False,
        expansion: int | None = None,
        stage_channels: Sequence[int] | None = None,
        mid_channels: Sequence[Sequence[int | Sequence[int]]] | None = None,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(
                f'{type(self).__name__} has no depth {depth!r}: choose one of {sorted(self.arch_settings)}'
            )
        check_stages(
            num_stages,
            4,
            strides=strides,
            dilations=dilations,
            stage_with_dcn=None if dcn is None else stage_with_dcn,
            with_se=with_se if isinstance(with_se, Sequence) else None,
            out_indices=out_indices,
        )
        check_stage_channels(stage_channels, num_stages)
        init_cfg = checkpoint_init_cfg(pretrained, init_cfg)
        super().__init__(
            num_stages,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            with_se=with_se,
            se_ratio=se_ratio,
            se_cfg=se_cfg,
            deploy=deploy,
            init_cfg=init_cfg,
        )
        self.depth, self.style = depth, style
        self.deep_stem, self.avg_down, self.zero_init_residual = deep_stem, avg_down, zero_init_residual
        self.strides, self.dilations, self.se_position = strides, dilations, se_position
        self.conv_cfg, self.norm_cfg = conv_cfg, norm_cfg
        self.base_channels = base_channels
        self.stem_channels = base_channels if stem_channels is None else stem_channels
        self.block, stage_blocks = self.arch_settings[depth]
        self.stage_blocks = stage_blocks[:num_stages]
        self.expansion = self.block.expansion if expansion is None else expansion

        basic = self.block is SEBasicBlock
        check_block(style, self.expansion, bottleneck=not basic)
        check_plugins(plugins, PLUGIN_POSITIONS[:2] if basic else PLUGIN_POSITIONS, num_stages)
        check_fused_se(fused_se)
        check_se_position(se_position, bottleneck=not basic)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate={drop_path_rate}: choose a rate from 0 to below 1')
        if basic and dcn is not None:
            raise ValueError(f'dcn needs bottlenecks: depth {depth} has none, choose 50 or more')
        if multi_grid is not None and len(multi_grid) != self.stage_blocks[-1]:
            raise ValueError(
                f'multi_grid={tuple(multi_grid)}: give {self.stage_blocks[-1]} entries, one for each block'
            )
        last_norm_cfg = None
        if init_cfg is None and zero_init_residual:
            if any(self.with_se) and se_position == 'standard' and self._first_gate() == 0:
                raise ValueError(
                    'branches that start at 0 never train with a gate that is 0 there: set zero_init_residual=False, '
                    f'or another gate than that of se_cfg.act_cfg={self.se_cfg["act_cfg"]}'
                )
            last_norm_cfg = dict(type='Constant', val=0, override=dict(name='norm2' if basic else 'norm3'))

        usual = [self.stem_channels, *(base_channels * 2**i * self.expansion for i in range(num_stages))]
        channels = usual if stage_channels is None else stage_channels
        self._make_stem(in_channels, channels[0], stem_pool_ceil_mode)
        options = dict(
            style=style,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            se_cfg=self.se_cfg,
            fused_se=fused_se,
            init_cfg=last_norm_cfg,
            expansion=expansion,
            **self._block_kwargs(),
        )
        widths = widths_of_units(mid_channels, self.stage_blocks, 1 if basic else 2, getattr(self, 'groups', 1))
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(self.stage_blocks), device='cpu').tolist())
        for i, num_blocks in enumerate(self.stage_blocks):
            inplanes, outplanes = channels[i : i + 2]
            # Pruned stages may have equal widths by chance: the shortcut stays a convolution.
            changes_width = inplanes != outplanes or usual[i] != usual[i + 1]
            options.update(
                dcn=dcn if stage_with_dcn[i] else None,
                plugins=self._stage_plugins(plugins, i),
            )
            grid = [dilations[i]] * num_blocks
            if contract_dilation and dilations[i] > 1:
                grid[0] //= 2
            if multi_grid is not None and i == num_stages - 1:
                grid = multi_grid
            blocks = []
            for j in range(num_blocks):
                stride = strides[i] if j == 0 else 1
                downsample = None
                if j == 0 and (stride != 1 or changes_width):
                    downsample = self._make_downsample(inplanes, outplanes, stride)
                unit = dict(stride=stride, dilation=grid[j], downsample=downsample, drop_path=next(drop_paths))
                unit.update(se_position=se_position if self.next_has_se(i) else None)
                unit.update(out_channels=outplanes, mid_channels=widths[i][j])
                blocks.append(self.block(inplanes, base_channels * 2**i, **unit, **options))
                inplanes = outplanes
            self.add_stage(blocks, 'layer')
        self.feat_dim = channels[num_stages]
        if fused_se:
            self._say_why_not_fused()

    def _say_why_not_fused(self) -> None:
        blocks = [block for name in self.stage_names for block in getattr(self, name) if block.se_position]
        reasons = [reason for reason in (block.why_not_fused() for block in blocks) if reason]
        if reasons:
            print_log(
                f'{type(self).__name__} runs SE without fusion in {len(reasons)} of {len(blocks)} blocks: '
                f'{"; ".join(sorted(set(reasons)))}.',
                logger='current',
            )

    def _first_gate(self) -> float:
        if 'act_cfg' not in self.se_cfg:
            return 0.5
        check_act_cfg(self.se_cfg['act_cfg'])
        start = torch.tensor([float(self.se_cfg.get('gate_bias') or 0)], device='cpu')
        return build_activation_layer(self.se_cfg['act_cfg'][1])(start).item()

    def _make_stem(self, in_channels: int, stem_channels: int, ceil_mode: bool) -> None:

        def conv(cin: int, cout: int, kernel: int, stride: int) -> nn.Module:
            return build_conv_layer(
                self.conv_cfg, cin, cout, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=False
            )

        if self.deep_stem:
            half = self.stem_channels // 2
            layers = []
            for cin, cout, stride in ((in_channels, half, 2), (half, half, 1), (half, stem_channels, 1)):
                norm = build_norm_layer(self.norm_cfg, cout)[1]
                layers += [conv(cin, cout, 3, stride), norm, nn.ReLU(inplace=True)]
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1 = conv(in_channels, stem_channels, 7, 2)
            self.norm1_name, norm1 = build_norm_layer(self.norm_cfg, stem_channels, postfix=1)
            self.add_module(self.norm1_name, norm1)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=0 if ceil_mode else 1, ceil_mode=ceil_mode)

    def _make_downsample(self, inplanes: int, outplanes: int, stride: int) -> nn.Module:
        layers, kernel = [], self.downsample_kernel if stride > 1 else 1
        if self.avg_down:
            layers.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
            stride = 1
        layers.append(
            build_conv_layer(self.conv_cfg, inplanes, outplanes, kernel, stride=stride, padding=kernel // 2, bias=False)
        )
        layers.append(build_norm_layer(self.norm_cfg, outplanes)[1])
        return nn.Sequential(*layers)

    def _stage_plugins(self, plugins: list[dict] | None, stage: int) -> list[dict]:
        return [p for p in plugins or () if p.get('stages') is None or p['stages'][stage]]

    def _block_kwargs(self) -> dict:
        return {}

    norm1 = property(lambda self: getattr(self, self.norm1_name))

    res_layers = property(lambda self: self.stage_names)  # mmdet's name

    def convolutions_with_norm(self) -> list[tuple[str, str]]:
        """Names of the stem's convolution and norm, where they are no part of a Sequential."""
        return [] if self.deep_stem else [('conv1', self.norm1_name)]

    def stem_modules(self) -> list[nn.Module]:
        return [self.stem] if self.deep_stem else [self.conv1, self.norm1]

    def run_stem(self, x: Tensor) -> Tensor:
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        return self.maxpool(x)


@MODELS.register_module()
class SEResNeXt(SEResNet):
    """SE-ResNeXt: SE-ResNet with grouped 3x3 convolutions, depths 50, 101 and 152.

    Args:
        groups: groups of the 3x3 convolutions.
        base_width: channels of a group in the first stage; 32 groups of 4 are "32x4d". With one group it has no
            effect, as in mmdet's ResNeXt: the network is then a SEResNet.
        width_per_group: the same under mmpretrain's name, goes before ``base_width``.
    """

    arch_settings = {depth: SEResNet.arch_settings[depth] for depth in (50, 101, 152)}

    def __init__(
        self, depth: int, groups: int = 32, base_width: int = 4, width_per_group: int | None = None, **kwargs
    ) -> None:
        self.groups, self.base_width = groups, width_per_group or base_width
        super().__init__(depth, **kwargs)

    def _block_kwargs(self) -> dict:
        return dict(groups=self.groups, base_width=self.base_width, base_channels=self.base_channels)

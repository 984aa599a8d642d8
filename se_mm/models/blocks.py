"""Residual units with SE at the end of the branch.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, figure 3.
"""

from __future__ import annotations

import torch.utils.checkpoint as cp
from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from se_mm.ops import has_hooks, se_tail, why_not_fused

from .se_layer import SELayer


class SEBlock(BaseModule):
    """A residual unit with SE on its branch: relu(se(branch(x)) + shortcut(x)).

    Subclasses say which convolutions the branch has; each is followed by its norm, all but the
    last by ReLU. Stochastic depth drops whole branches after SE. Plugins after the last
    convolution come before SE. What follows the last convolution is fused where it can be, see
    :mod:`se_mm.ops`; parameters and results are the same.

    Args:
        inplanes: channels of the input.
        planes: channels of the branch before expansion; the output has
            ``planes * expansion``.
        stride: stride of the unit.
        dilation: dilation of its 3x3 convolution.
        downsample: the shortcut, None for identity.
        style: 'pytorch' (stride in the 3x3 convolution of a bottleneck) or 'caffe' (in its
            first 1x1).
        with_cp: recompute the unit in backward instead of storing its activations.
        conv_cfg: config of the convolutions.
        norm_cfg: config of the norms.
        dcn: config of the deformable convolution that replaces a bottleneck's 3x3.
        plugins: dicts with ``cfg`` and ``position``.
        se_cfg: arguments of :class:`SELayer` but ``channels``.
        drop_path: probability of dropping the branch of an image in training.
        groups, base_width, base_channels: of ResNeXt's grouped 3x3 convolution.
        fused_se: whether to fuse the last norm, SE, sum and ReLU; a backend of
            :func:`se_mm.ops.se_tail` to insist on it.
        init_cfg: initialisation config.
    """

    expansion: int

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        style: str = 'pytorch',
        with_cp: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN'),
        dcn: dict | None = None,
        plugins: list[dict] | None = None,
        se_cfg: dict | None = None,
        drop_path: float = 0.0,
        groups: int = 1,
        base_width: int = 4,
        base_channels: int = 64,
        fused_se: bool | str = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.inplanes, self.planes = inplanes, planes
        self.stride, self.dilation, self.style = stride, dilation, style
        self.groups = groups
        self.width = planes if groups == 1 else planes * base_width // base_channels * groups
        self.with_cp, self.fused_se = with_cp, fused_se

        convs = self.branch_convs()
        self.norm_names, self.plugin_names = [], []
        for i, (in_channels, out_channels, conv_kwargs) in enumerate(convs, 1):
            cfg = conv_cfg
            if dcn is not None and conv_kwargs['kernel_size'] == 3:
                dcn = dict(dcn)
                if not dcn.pop('fallback_on_stride', False) or conv_kwargs['stride'] == 1:
                    if conv_cfg is not None:
                        raise ValueError(f'conv_cfg={conv_cfg} cannot be combined with dcn')
                    cfg = dcn
            self.add_module(f'conv{i}', build_conv_layer(cfg, in_channels, out_channels, bias=False, **conv_kwargs))
            name, norm = build_norm_layer(norm_cfg, out_channels, postfix=i)
            self.add_module(name, norm)
            self.norm_names.append(name)
            self.plugin_names.append(self._add_plugins(out_channels, plugins, f'after_conv{i}'))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.se_layer = SELayer(planes * self.expansion, **(se_cfg or {}))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def branch_convs(self) -> list[tuple[int, int, dict]]:
        """Input channels, output channels and further arguments of each convolution."""
        raise NotImplementedError

    def _add_plugins(self, channels: int, plugins: list[dict] | None, position: str) -> list[str]:
        names = []
        for plugin in plugins or ():
            if plugin['position'] != position:
                continue
            cfg = dict(plugin['cfg'])
            name, layer = build_plugin_layer(cfg, in_channels=channels, postfix=cfg.pop('postfix', ''))
            if hasattr(self, name):
                raise ValueError(f'two plugins are named {name}: give them different postfixes')
            self.add_module(name, layer)
            names.append(name)
        return names

    # norm1 to norm3 are the names that configs use to initialise a norm whatever its type.
    norm1 = property(lambda self: getattr(self, self.norm_names[0]))
    norm2 = property(lambda self: getattr(self, self.norm_names[1]))

    def branch(self, x: Tensor) -> Tensor:
        """Convolutions, norms and plugins up to the last convolution."""
        for i, (norm, plugins) in enumerate(zip(self.norm_names, self.plugin_names), 1):
            x = getattr(self, f'conv{i}')(x)
            if i < len(self.norm_names):
                x = self.relu(getattr(self, norm)(x))
                for plugin in plugins:
                    x = getattr(self, plugin)(x)
        return x

    def why_not_fused(self) -> str | None:
        """Why the operations after the last convolution run one after the other; None if they are fused."""
        if not self.fused_se:
            return 'fused_se=False'
        if self.plugin_names[-1]:
            return 'plugins stand between the last convolution and SE'
        squeeze = getattr(self.se_layer, 'global_avgpool', None)
        same = type(self.se_layer).forward is SELayer.forward and type(self.se_layer).scale is SELayer.scale
        if not same or type(squeeze) is not nn.AdaptiveAvgPool2d or type(self.relu) is not nn.ReLU:
            return 'se_layer or relu was replaced'
        parts = dict(se_layer=self.se_layer, global_avgpool=squeeze, drop_path=self.drop_path, relu=self.relu)
        for name, module in parts.items():
            if has_hooks(module):
                return f'{name} has hooks, which want to see its input or output'
        return why_not_fused(getattr(self, self.norm_names[-1]))

    def gate(self, z: Tensor) -> Tensor:
        """The factors of the branch's channels for the squeezed z, both (N, C): gates, 0 for a dropped branch."""
        return self.drop_path(self.se_layer.excite(z[:, :, None, None])).flatten(1)

    def _forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.branch(x)
        norm = getattr(self, self.norm_names[-1])
        if self.why_not_fused() is None:
            return se_tail(x, identity, norm, self.gate, None if self.fused_se is True else self.fused_se)
        x = norm(x)
        for plugin in self.plugin_names[-1]:
            x = getattr(self, plugin)(x)
        return self.relu(self.drop_path(self.se_layer(x)) + identity)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) to (N, planes * expansion, H / stride, W / stride)."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)


class SEBasicBlock(SEBlock):
    """Two 3x3 convolutions, the first with stride and dilation."""

    expansion = 1

    def branch_convs(self) -> list[tuple[int, int, dict]]:
        first = dict(kernel_size=3, stride=self.stride, padding=self.dilation, dilation=self.dilation)
        second = dict(kernel_size=3, stride=1, padding=1)
        return [(self.inplanes, self.planes, first), (self.planes, self.planes, second)]


class SEBottleneck(SEBlock):
    """1x1, 3x3 and 1x1 convolution; the 3x3 is grouped in ResNeXt."""

    expansion = 4
    norm3 = property(lambda self: getattr(self, self.norm_names[2]))

    def branch_convs(self) -> list[tuple[int, int, dict]]:
        stride1, stride2 = (1, self.stride) if self.style == 'pytorch' else (self.stride, 1)
        spatial = dict(kernel_size=3, stride=stride2, padding=self.dilation, dilation=self.dilation, groups=self.groups)
        return [
            (self.inplanes, self.width, dict(kernel_size=1, stride=stride1)),
            (self.width, self.width, spatial),
            (self.width, self.planes * self.expansion, dict(kernel_size=1)),
        ]

"""Residual units with SE.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, figures 3 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from torch import Tensor, nn

from .checks import check_block
from .residual import SEResidual
from .se_layer import SELayer

SE_POSITIONS = ('standard', 'pre', 'post', 'identity', '3x3')


def check_se_position(se_position: str | None, bottleneck: bool) -> None:
    """Check where SE stands in a residual unit, None for nowhere."""
    if se_position not in (None, *SE_POSITIONS):
        raise ValueError(f'se_position={se_position!r}: choose one of {SE_POSITIONS}')
    if se_position == '3x3' and not bottleneck:
        raise ValueError("se_position='3x3' needs bottlenecks: depths 18 and 34 have none")


def branch_conv_cfg(conv_cfg: dict | None, dcn: dict | None, kernel_size: int, stride: int, **_) -> dict | None:
    """Config of a convolution: ``dcn`` for 3x3, with ``fallback_on_stride`` only where there is no stride.

    Raises:
        ValueError: two configs for one convolution.
    """
    dcn = dict(dcn or {})
    fallback = dcn.pop('fallback_on_stride', False)
    if not dcn or kernel_size != 3 or (fallback and stride != 1):
        return conv_cfg
    if conv_cfg is not None:
        raise ValueError(f'conv_cfg={conv_cfg} cannot be combined with dcn')
    return dcn


class SEBlock(SEResidual):
    """A residual unit of ResNet with SE, usually on its branch: relu(se(branch(x)) + shortcut(x)).

    Subclasses say which convolutions the branch has; each is followed by its norm, all but the
    last by ReLU. Stochastic depth drops whole branches after SE. Plugins after the last
    convolution come before SE.

    Where SE may stand (section 6.5 of the paper): 'standard' as above; 'pre' before the branch,
    relu(branch(se(x)) + shortcut(x)); 'post' after the unit, se(relu(branch(x) + shortcut(x)));
    'identity' on the shortcut, relu(branch(x) + se(shortcut(x))); '3x3' after a bottleneck's 3x3
    convolution, its norm and ReLU.

    Args:
        inplanes: channels of the input.
        planes: channels of the branch before expansion; the output has
            ``planes * expansion``.
        stride: stride of the unit.
        dilation: dilation of its 3x3 convolution.
        downsample: the shortcut, None for identity.
        style: 'pytorch' (stride in the 3x3 convolution of a bottleneck) or 'caffe' (in its
            first 1x1).
        conv_cfg: config of the convolutions.
        norm_cfg: config of the norms.
        dcn: config of the deformable convolution that replaces a bottleneck's 3x3.
        plugins: dicts with ``cfg`` and ``position``.
        se_cfg: arguments of :class:`SELayer` but ``channels``.
        se_position: where SE stands; None for a unit without SE.
        drop_path: probability of dropping the branch of an image in training.
        groups, base_width, base_channels: of ResNeXt's grouped 3x3 convolution.
        expansion: output channels of a bottleneck in ``planes``, None for 4.
        out_channels: channels of the output, None for ``planes * expansion``.
        mid_channels: output channels of each convolution but the last, None for those of the architecture.
        fused_se: of :class:`SEResidual`.
        init_cfg: initialisation config.

    Raises:
        ValueError: unknown position of SE, or one that the unit does not have.
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
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN'),
        dcn: dict | None = None,
        plugins: list[dict] | None = None,
        se_cfg: dict | None = None,
        se_position: str | None = 'standard',
        drop_path: float = 0.0,
        groups: int = 1,
        base_width: int = 4,
        base_channels: int = 64,
        fused_se: bool | str = True,
        init_cfg: dict | list[dict] | None = None,
        expansion: int | None = None,
        out_channels: int | None = None,
        mid_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(fused_se=fused_se, drop_path=drop_path, init_cfg=init_cfg)
        self.expansion = type(self).expansion if expansion is None else expansion
        check_block(style, self.expansion, bottleneck=type(self).expansion > 1)
        self.inplanes, self.planes = inplanes, planes
        self.stride, self.dilation, self.style = stride, dilation, style
        self.groups = groups
        width = planes if groups == 1 else planes * base_width // base_channels * groups
        self.widths = self.usual_widths(width) if mid_channels is None else tuple(mid_channels)
        # mmpretrain's names
        self.in_channels, self.mid_channels = inplanes, self.widths[-1]
        self.out_channels = planes * self.expansion if out_channels is None else out_channels
        self.se_position = se_position
        check_se_position(se_position, bottleneck=type(self).expansion > 1)

        self.plugin_names: dict[str, list[str]] = {}
        channels = (self.inplanes, *self.widths, self.out_channels)
        for i, (cin, cout, conv_kwargs) in enumerate(zip(channels, channels[1:], self.branch_convs()), 1):
            cfg = branch_conv_cfg(conv_cfg, dcn, **conv_kwargs)
            self.add_module(f'conv{i}', build_conv_layer(cfg, cin, cout, bias=False, **conv_kwargs))
            norm_name, norm = build_norm_layer(norm_cfg, cout, postfix=i)
            self.add_module(norm_name, norm)
            setattr(self, f'norm{i}_name', norm_name)
            self._add_plugins(f'after_conv{i}', plugins, cout)
        self.downsample = downsample
        self.se_layer = None if se_position is None else SELayer(self._se_channels(), **(se_cfg or {}))

    @classmethod
    def usual_widths(cls, width: int) -> tuple[int, ...]:
        """Output channels of each convolution but the last, for the width of the branch."""
        raise NotImplementedError

    def branch_convs(self) -> list[dict]:
        """Arguments of each convolution but its channels."""
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) to the last convolution's input (N, widths[-1], H / stride, W / stride)."""
        raise NotImplementedError

    def convolutions_with_norm(self) -> list[tuple[str, str]]:
        """Names of the convolutions and of the norms of their outputs."""
        return [(f'conv{i}', getattr(self, f'norm{i}_name')) for i, _ in enumerate(self.branch_convs(), 1)]

    def _se_channels(self) -> int:
        return {'pre': self.inplanes, '3x3': self.widths[-1]}.get(self.se_position, self.out_channels)

    def _add_plugins(self, position: str, plugins: list[dict] | None, channels: int) -> None:
        self.plugin_names[position] = []
        for plugin in plugins or ():
            if plugin['position'] != position:
                continue
            cfg = dict(plugin['cfg'])
            name, layer = build_plugin_layer(cfg, in_channels=channels, postfix=cfg.pop('postfix', ''))
            if hasattr(self, name):
                raise ValueError(f'two plugins are named {name}: give them different postfixes')
            if name in ('se_layer', 'downsample'):
                raise ValueError(f'a plugin is named {name}, as another part of the unit: give it a postfix')
            self.add_module(name, layer)
            self.plugin_names[position].append(name)

    def run_plugins(self, x: Tensor, position: str) -> Tensor:
        """x (N, C, H, W) through the plugins of a position."""
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x

    # norm1 to norm3 are the names that configs use to initialise a norm whatever its type.
    norm1 = property(lambda self: getattr(self, self.norm1_name))
    norm2 = property(lambda self: getattr(self, self.norm2_name))

    def layers_before_se(self) -> list[nn.Module]:
        """For :func:`start_as_identity`; none if SE stands elsewhere than after a norm, or after a plugin."""
        if self.se_position == 'standard' and not self.plugin_names[self.last_position]:
            return [self.last_norm]
        if self.se_position == '3x3' and not self.plugin_names['after_conv2']:
            return [self.norm2]
        return []

    def why_not_fused(self) -> str | None:
        if self.se_position != 'standard':
            return f'se_position={self.se_position!r}'
        if self.plugin_names[self.last_position]:
            return 'plugins stand between the last convolution and SE'
        return super().why_not_fused()

    def why_not_squeezed_before(self) -> str | None:
        if self.se_position != 'standard':
            return f'se_position={self.se_position!r}'
        if self.plugin_names[self.last_position]:
            return 'plugins stand between the last convolution and SE'
        return super().why_not_squeezed_before()

    def plain_tail(self, x: Tensor, identity: Tensor) -> Tensor:
        x = self.run_plugins(self.last_norm(x), self.last_position)
        if self.se_position == 'standard':
            x = self.se_layer(x)
        return self.relu(self.drop_path(x) + identity)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) to (N, out_channels, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        if self.se_position == 'identity':
            identity = self.se_layer(identity)
        if self.se_position == 'pre':
            x = self.se_layer(x)
        out = self.residual(self.branch(x), identity)
        return self.se_layer(out) if self.se_position == 'post' else out


class SEBasicBlock(SEBlock):
    """Two 3x3 convolutions, the first with stride and dilation."""

    expansion = 1
    last_conv = property(lambda self: self.conv2)
    last_norm, last_position = SEBlock.norm2, 'after_conv2'

    @classmethod
    def usual_widths(cls, width: int) -> tuple[int, ...]:
        return (width,)

    def branch_convs(self) -> list[dict]:
        first = dict(kernel_size=3, stride=self.stride, padding=self.dilation, dilation=self.dilation)
        return [first, dict(kernel_size=3, stride=1, padding=1)]

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))  # (N, widths[0], H / stride, W / stride)
        return self.run_plugins(x, 'after_conv1')


class SEBottleneck(SEBlock):
    """1x1, 3x3 and 1x1 convolution; the 3x3 is grouped in ResNeXt."""

    expansion = 4
    norm3 = property(lambda self: getattr(self, self.norm3_name))
    last_conv = property(lambda self: self.conv3)
    last_norm, last_position = norm3, 'after_conv3'

    @classmethod
    def usual_widths(cls, width: int) -> tuple[int, ...]:
        return width, width

    def branch_convs(self) -> list[dict]:
        stride1, stride2 = (1, self.stride) if self.style == 'pytorch' else (self.stride, 1)
        spatial = dict(kernel_size=3, stride=stride2, padding=self.dilation, dilation=self.dilation, groups=self.groups)
        return [dict(kernel_size=1, stride=stride1), spatial, dict(kernel_size=1, stride=1)]

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))  # (N, widths[0], H, W); style 'caffe' has the stride here
        x = self.run_plugins(x, 'after_conv1')
        x = self.relu(self.norm2(self.conv2(x)))  # (N, widths[1], H / stride, W / stride)
        x = self.run_plugins(x, 'after_conv2')
        if self.se_position == '3x3':
            x = self.se_layer(x)
        return x

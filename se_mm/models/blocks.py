"""Residual units with SE.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, figures 3 and 5.
"""

from __future__ import annotations

from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from se_mm.ops import has_hooks, se_tail, why_not_fused

from .checks import check_block
from .se_layer import SELayer

SE_POSITIONS = ('standard', 'pre', 'post', 'identity', '3x3')
FUSED_SE = (True, False, 'torch', 'triton')


def check_se_position(se_position: str | None, bottleneck: bool) -> None:
    if se_position not in (None, *SE_POSITIONS):
        raise ValueError(f'se_position={se_position!r}: choose one of {SE_POSITIONS}')
    if se_position == '3x3' and not bottleneck:
        raise ValueError("se_position='3x3' needs bottlenecks: depths 18 and 34 have none")


def check_fused_se(fused_se: bool | str) -> None:
    if fused_se not in FUSED_SE:
        raise ValueError(f'fused_se={fused_se!r}: choose one of {FUSED_SE}')


def why_se_not_fused(norm: nn.Module, se_layer: nn.Module) -> str | None:
    """Why relu(se_layer(norm(x)) + identity) runs one operation after the other; None if it is fused."""
    if type(se_layer).forward is not SELayer.forward or type(se_layer).scale is not SELayer.scale:
        return 'se_layer was replaced'
    if type(se_layer.squeeze) is not nn.AdaptiveAvgPool2d:
        return f'SE squeezes by {type(se_layer.squeeze).__name__}'
    if has_hooks(se_layer) or has_hooks(se_layer.squeeze):
        return 'se_layer or its squeeze has hooks, which want to see its input or output'
    return why_not_fused(norm)


def se_residual(
    x: Tensor, identity: Tensor, norm: nn.Module, se_layer: nn.Module, fused_se: bool | str = True, factor: float = 1.0
) -> Tensor:
    """relu(factor * se_layer(norm(x)) + identity), fused where it can be; all maps (N, C, H, W)."""
    if fused_se and why_se_not_fused(norm, se_layer) is None:
        backend = None if fused_se is True else fused_se
        return se_tail(x, identity, norm, lambda z: factor * se_layer.excite(z), backend)
    return (factor * se_layer(norm(x)) + identity).relu_()


class SEBlock(BaseModule):
    """A residual unit with SE, usually on its branch: relu(se(branch(x)) + shortcut(x)).

    Subclasses say which convolutions the branch has; each is followed by its norm, all but the
    last by ReLU. Stochastic depth drops whole branches after SE. Plugins after the last
    convolution come before SE. What follows the last convolution is fused where it can be, see
    :mod:`se_mm.ops`; parameters and results are the same.

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
        fused_se: whether to fuse the last norm, SE, sum and ReLU; a backend of
            :func:`se_mm.ops.se_tail` to insist on it.
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
    ) -> None:
        super().__init__(init_cfg)
        self.expansion = type(self).expansion if expansion is None else expansion
        check_block(style, self.expansion, bottleneck=type(self).expansion > 1)
        self.inplanes, self.planes = inplanes, planes
        self.stride, self.dilation, self.style = stride, dilation, style
        self.groups = groups
        self.width = planes if groups == 1 else planes * base_width // base_channels * groups
        # mmpretrain's names
        self.in_channels, self.mid_channels, self.out_channels = inplanes, self.width, planes * self.expansion
        self.fused_se, self.se_position = fused_se, se_position

        check_se_position(se_position, bottleneck=type(self).expansion > 1)
        self.layers = []  # names of each convolution, its norm and what follows
        for i, (in_channels, out_channels, conv_kwargs) in enumerate(self.branch_convs(), 1):
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
            self.layers.append((f'conv{i}', name, self._add_plugins(out_channels, plugins, f'after_conv{i}')))
        if se_position == '3x3':
            self.layers[1][2].append('se_layer')
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.se_layer = None if se_position is None else SELayer(self._se_channels(), **(se_cfg or {}))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def branch_convs(self) -> list[tuple[int, int, dict]]:
        """Input channels, output channels and further arguments of each convolution."""
        raise NotImplementedError

    def _se_channels(self) -> int:
        return {'pre': self.inplanes, '3x3': self.width}.get(self.se_position, self.planes * self.expansion)

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
    norm1 = property(lambda self: getattr(self, self.layers[0][1]))
    norm2 = property(lambda self: getattr(self, self.layers[1][1]))

    def branch(self, x: Tensor) -> Tensor:
        """Convolutions, norms and plugins up to the last convolution."""
        *layers, (last, _, _) = self.layers
        for conv, norm, plugins in layers:
            x = self.relu(getattr(self, norm)(getattr(self, conv)(x)))
            for plugin in plugins:
                x = getattr(self, plugin)(x)
        return getattr(self, last)(x)

    def layers_before_se(self) -> list[nn.Module]:
        """For :func:`start_as_identity`; none if SE stands elsewhere than after a norm, or after a plugin."""
        if self.se_position not in ('standard', '3x3'):
            return []
        _, norm, following = self.layers[1 if self.se_position == '3x3' else -1]
        return [] if set(following) - {'se_layer'} else [getattr(self, norm)]

    def _se(self, x: Tensor, position: str) -> Tensor:
        return self.se_layer(x) if self.se_position == position else x

    def why_not_fused(self) -> str | None:
        """Why the operations after the last convolution run one after the other; None if they are fused."""
        if not self.fused_se:
            return 'fused_se=False'
        if self.se_position != 'standard':
            return f'se_position={self.se_position!r}'
        _, norm, plugins = self.layers[-1]
        if plugins:
            return 'plugins stand between the last convolution and SE'
        if type(self.relu) is not nn.ReLU:
            return 'relu was replaced'
        for name in ('drop_path', 'relu'):
            if has_hooks(getattr(self, name)):
                return f'{name} has hooks, which want to see its input or output'
        return why_se_not_fused(getattr(self, norm), self.se_layer)

    def gate(self, z: Tensor) -> Tensor:
        """The factors of the branch's channels for the squeezed z, both (N, C): gates, 0 for a dropped branch."""
        gates = self.se_layer.excite(z)
        return gates if type(self.drop_path) is nn.Identity else self.drop_path(gates)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) to (N, planes * expansion, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        _, norm, plugins = self.layers[-1]
        if self.why_not_fused() is None:
            backend = None if self.fused_se is True else self.fused_se
            return se_tail(self.branch(x), identity, getattr(self, norm), self.gate, backend)
        identity = self._se(identity, 'identity')
        x = getattr(self, norm)(self.branch(self._se(x, 'pre')))
        for plugin in plugins:
            x = getattr(self, plugin)(x)
        return self._se(self.relu(self.drop_path(self._se(x, 'standard')) + identity), 'post')


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
    norm3 = property(lambda self: getattr(self, self.layers[2][1]))

    def branch_convs(self) -> list[tuple[int, int, dict]]:
        stride1, stride2 = (1, self.stride) if self.style == 'pytorch' else (self.stride, 1)
        spatial = dict(kernel_size=3, stride=stride2, padding=self.dilation, dilation=self.dilation, groups=self.groups)
        return [
            (self.inplanes, self.width, dict(kernel_size=1, stride=stride1)),
            (self.width, self.width, spatial),
            (self.width, self.planes * self.expansion, dict(kernel_size=1)),
        ]


class SENetBottleneck(SEBottleneck):
    """Of SENet-154: the first convolution has half of the usual channels (appendix of the paper)."""

    def branch_convs(self) -> list[tuple[int, int, dict]]:
        (cin, width, first), (_, *second), third = super().branch_convs()
        return [(cin, width // 2, first), (width // 2, *second), third]

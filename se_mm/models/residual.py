"""How a residual unit with SE ends: the last convolution, its norm, SE, the sum and ReLU.

Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, figure 3.
"""

from __future__ import annotations

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from se_mm.ops import accumulation_dtype, is_affine, is_exporting, scale_add, se_tail, why_not_fused

from .deploy import why_not_pointwise
from .se_layer import SELayer

FUSED_SE = (True, False, 'torch', 'triton')


def check_fused_se(fused_se: bool | str) -> None:
    """Check whether to fuse tails, or by which backend."""
    if fused_se not in FUSED_SE:
        raise ValueError(f'fused_se={fused_se!r}: choose one of {FUSED_SE}')


class SEResidual(BaseModule):
    """A residual unit that ends in relu(drop_path(factor * se_layer(norm(x))) + identity), its tail.

    The tail is fused where it can be, see :mod:`se_mm.ops`; parameters and results are the same.
    Subclasses have the submodule ``se_layer`` and, unless they say otherwise by ``last_conv`` and ``last_norm``,
    ``conv`` and ``norm``. A deployed unit may take its gates from the input of the last convolution, see
    :mod:`se_mm.models.deploy`.

    Args:
        fused_se: whether to fuse the tail; a backend of :func:`se_mm.ops.se_tail` to insist on it.
        factor: of the branch.
        drop_path: probability of dropping the branch of an image in training.
        init_cfg: initialisation config.
    """

    def __init__(
        self,
        *,
        fused_se: bool | str = True,
        factor: float = 1.0,
        drop_path: float = 0.0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.fused_se, self.factor = fused_se, factor
        self.squeezes_before = False
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    @property
    def last_conv(self) -> nn.Module:
        """The convolution before the tail."""
        return self.conv

    @property
    def last_norm(self) -> nn.Module:
        """The norm of the last convolution."""
        return self.norm

    def why_not_fused(self) -> str | None:
        """Why the operations after the last convolution run one after the other; None if they are fused."""
        if not self.fused_se:
            return 'fused_se=False'
        se_layer, relu = self.se_layer, self.relu
        if type(se_layer).forward is not SELayer.forward or type(se_layer).gates is not SELayer.gates:
            return f'{type(se_layer).__name__} stands in place of SELayer'
        if type(relu) is not nn.ReLU:
            return f'{type(relu).__name__} stands in place of ReLU'
        if se_layer.maps:
            return 'the gates are maps'
        squeeze = se_layer.squeeze
        if type(squeeze) is not nn.AdaptiveAvgPool2d:
            return f'SE squeezes by {type(squeeze).__name__}'
        return why_not_fused(self.last_norm, drop_path=self.drop_path, relu=relu, se_layer=se_layer, squeeze=squeeze)

    def branch_gates(self, z: Tensor) -> Tensor:
        """What the branch is scaled by for the squeezed z, both (N, C): gates times factor, 0 for a dropped branch."""
        gates = self.se_layer.excite(z)
        if self.factor != 1:
            gates = self.factor * gates
        return gates if type(self.drop_path) is nn.Identity else self.drop_path(gates)

    def residual(self, x: Tensor, identity: Tensor) -> Tensor:
        """The last convolution, of the input x (N, width, H, W), and the tail; identity and the result are
        (N, C, H, W)."""
        if not self.squeezes_before:
            return self.tail(self.last_conv(x), identity, x)
        if self.se_layer.maps:
            return self.relu(self.last_conv(x) * self.branch_gates(self.se_layer.squeeze(x)) + identity)
        gates = self.branch_gates(x.mean((2, 3)))
        in_place = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())
        return self.relu(scale_add(self.last_conv(x), gates, identity, in_place=in_place))

    def why_not_squeezed_before(self) -> str | None:
        """What stands between the last convolution and SE, for :meth:`Backbone.switch_to_deploy`; None if nothing."""
        return None if type(self.last_norm) is nn.Identity else f'{type(self.last_norm).__name__} stands before SE'

    def means_from_input(self, x: Tensor) -> Tensor | None:
        """The means (N, C) over H and W of the last convolution's output, from its input x (N, width, H, W).

        None if the norm behind needs more than means, the convolution is no linear map of positions, or its output has
        fewer bytes to read than its input and its weights. :mod:`se_mm.models.deploy` has the derivation.

        Means of maps in half precision are float32: a norm that subtracts similar numbers makes rounding larger.
        """
        conv = self.last_conv
        if not is_affine(self.last_norm) or why_not_pointwise(conv) or conv.groups > 1:
            return None
        weight, bias = conv.weight.flatten(1), conv.bias  # (C, width), (C,)
        outputs = x.numel() // x.shape[1] * len(weight)
        if weight.numel() * weight.element_size() > (outputs - x.numel()) * x.element_size():
            return None
        dtype = accumulation_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return nn.functional.linear(x.mean((2, 3), dtype=dtype), weight.to(dtype), bias)

    def tail(self, x: Tensor, identity: Tensor, source: Tensor | None = None) -> Tensor:
        """What follows the last convolution.

        Args:
            x: its output, (N, C, H, W).
            identity: the shortcut, as x.
            source: its input, from which a fused tail without gradients may know the means of x; None to read x.

        Returns:
            As x.
        """
        if isinstance(x, Tensor) and self.why_not_fused() is None:  # symbolic traces show the modules
            insists = self.fused_se is not True and x.numel() > 0  # an image may have no regions
            backend = self.fused_se if insists else None
            gate = means = None
            if x.is_cuda or backend == 'triton':
                if type(self).branch_gates is SEResidual.branch_gates and type(self.drop_path) is nn.Identity:
                    gate = self.se_layer.as_excitation(self.factor)
                traced = torch.jit.is_tracing() or is_exporting()  # for other sizes, too
                if source is not None and not torch.is_grad_enabled() and not traced:
                    means = self.means_from_input(source)
            gate = gate or self.branch_gates
            return se_tail(x, identity, self.last_norm, gate, backend, fusible=True, means=means)
        return self.plain_tail(x, identity)

    def plain_tail(self, x: Tensor, identity: Tensor) -> Tensor:
        """:meth:`tail` by its definition."""
        branch = self.se_layer(self.last_norm(x))
        if self.factor != 1:
            branch = self.factor * branch
        return self.relu(self.drop_path(branch) + identity)

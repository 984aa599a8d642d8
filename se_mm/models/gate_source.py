"""Where the gates of an SE layer are, in networks of this project and of others."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .se_layer import SELayer

# SE layers of other projects: class, and which of its modules has the gates as its output.
FOREIGN = {
    'timm.layers.squeeze_excite.SEModule': 'gate',
    'timm.layers.squeeze_excite.EffectiveSEModule': 'gate',
    'timm.models._efficientnet_blocks.SqueezeExcite': 'gate',
    'timm.models.hgnet.EseModule': 'sigmoid',
    'timm.models.senet.SEModule': 'sigmoid',
    'torchvision.ops.misc.SqueezeExcitation': 'scale_activation',
    'mmpretrain.models.utils.se_layer.SELayer': 'conv2',
    'mmdet.models.layers.se_layer.SELayer': 'conv2',
}


def gate_source(module: nn.Module) -> nn.Module | None:
    """The module inside of an SE layer whose output are the gates, None if ``module`` is no SE layer."""
    if isinstance(module, SELayer):
        return getattr(module, module.layers[-1])
    for kind in type(module).__mro__:
        if name := FOREIGN.get(f'{kind.__module__}.{kind.__qualname__}'):
            return getattr(module, name)
    return None


def observe_gates(module: nn.Module, observe: Callable[[Tensor], object]) -> Callable[[], object]:
    """Call a function with the gates of an SE layer whenever the layer computes them, which stays as it is.

    Args:
        module: an SE layer.
        observe: gets gates (N, C), (N, C, 1, 1), or (N, C, H, W) without squeeze; float32 where a kernel computes them.

    Returns:
        What ends the observation.
    """
    if not isinstance(module, SELayer) or type(module).excite is not SELayer.excite:
        return gate_source(module).register_forward_hook(lambda _, arguments, output: observe(output)).remove
    module.observers = (*module.observers, observe)

    def end() -> None:
        module.observers = tuple(other for other in module.observers if other is not observe)

    return end

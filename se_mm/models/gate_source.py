"""Where the gates of an SE layer are, in networks of this project and of others."""

from __future__ import annotations

from torch import nn

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

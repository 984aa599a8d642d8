from mmengine.registry import MODELS as ROOT_MODELS

from .resnet import SEResNet, SEResNeXt
from .se_layer import SELayer

# Bare names for configs of other scopes: a registry that lacks a name asks its parent, the root.
# mmpretrain has a SEResNet of its own, so its configs have to write `se_mm.SEResNet`.
for _backbone in (SEResNet, SEResNeXt):
    ROOT_MODELS.register_module(module=_backbone)

__all__ = ['SELayer', 'SEResNeXt', 'SEResNet']

from se_mm.utils.versions import check_versions

check_versions()  # explains what the errors of the imports below would not

from mmengine.registry import MODELS as ROOT_MODELS  # noqa: E402

from .resnet import SEResNet, SEResNeXt  # noqa: E402
from .se_layer import SELayer  # noqa: E402

# Bare names for configs of other scopes: a registry that lacks a name asks its parent, the root.
# mmpretrain has a SEResNet of its own, so its configs have to write `se_mm.SEResNet`.
for _backbone in (SEResNet, SEResNeXt):
    ROOT_MODELS.register_module(module=_backbone)

__all__ = ['SELayer', 'SEResNeXt', 'SEResNet']

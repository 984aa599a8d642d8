from se_mm.utils.versions import check_versions

check_versions()  # explains what the errors of the imports below would not

from mmengine.registry import MODELS as ROOT_MODELS  # noqa: E402

from .cifar import SECNN, SEResNetCIFAR  # noqa: E402
from .inception import SEBNInception, SEInceptionResNetV2  # noqa: E402
from .mobile import SEMobileNet, SEShuffleNet  # noqa: E402
from .necks import AveragePoolingDropout  # noqa: E402
from .resnet import SEResNet, SEResNeXt  # noqa: E402
from .se_layer import SELayer  # noqa: E402
from .senet import SENet  # noqa: E402
from .shake import SEShakeShake  # noqa: E402
from .shared_head import SEResLayer  # noqa: E402
from .vgg import SEVGG  # noqa: E402

BACKBONES = (
    SEResNet,
    SEResNeXt,
    SENet,
    SEBNInception,
    SEInceptionResNetV2,
    SEVGG,
    SEMobileNet,
    SEShuffleNet,
    SEResNetCIFAR,
    SEShakeShake,
    SECNN,
)
# Bare names for configs of other scopes: a registry that lacks a name asks its parent, the root.
# mmpretrain has a SEResNet of its own, so its configs have to write `se_mm.SEResNet`.
for _network in (*BACKBONES, SEResLayer):
    ROOT_MODELS.register_module(module=_network)

__all__ = [
    'AveragePoolingDropout',
    'BACKBONES',
    'SECNN',
    'SEVGG',
    'SEBNInception',
    'SEInceptionResNetV2',
    'SELayer',
    'SEMobileNet',
    'SENet',
    'SEResLayer',
    'SEResNeXt',
    'SEResNet',
    'SEResNetCIFAR',
    'SEShakeShake',
    'SEShuffleNet',
]

"""Registries of the scope ``se_mm``, children of MMEngine's root registries.

MMEngine imports ``<scope>.registry`` by itself, so ``type='se_mm.SEResNet'`` works in any
OpenMMLab config without ``custom_imports``.
"""

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as ROOT_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='se_mm', locations=['se_mm.models'])
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope='se_mm', locations=['se_mm.datasets'])
HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope='se_mm',
    locations=[f'se_mm.engine.{name}' for name in ('hooks', 'exact_resume', 'interruptions', 'hanging')],
)
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper', parent=ROOT_OPTIM_WRAPPERS, scope='se_mm', locations=['se_mm.engine.mixed_precision']
)
TRANSFORMS = Registry('transform', parent=ROOT_TRANSFORMS, scope='se_mm', locations=['se_mm.datasets'])
METRICS = Registry('metric', parent=ROOT_METRICS, scope='se_mm', locations=['se_mm.evaluation'])
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=ROOT_WEIGHT_INITIALIZERS, scope='se_mm', locations=['se_mm.weights']
)

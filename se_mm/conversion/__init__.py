"""What leaves this package: weights with the names of other projects, SE twins of configs, deployed networks."""

from .deployed import by_unit, features, largest_difference
from .inherited import check_inheritable, inherited_config
from .state_dicts import openmmlab_state, save_weights, timm_state
from .twins import twin_config

__all__ = [
    'by_unit',
    'check_inheritable',
    'features',
    'inherited_config',
    'largest_difference',
    'openmmlab_state',
    'save_weights',
    'timm_state',
    'twin_config',
]

"""What leaves this package: weights with the names of other projects, and SE twins of existing configs."""

from .state_dicts import openmmlab_state, save_weights, timm_state
from .twins import twin_config

__all__ = ['openmmlab_state', 'save_weights', 'timm_state', 'twin_config']

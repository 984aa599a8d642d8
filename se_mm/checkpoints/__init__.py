from .architecture import arguments_of, constructor_arguments, expected_arguments
from .formats import recognise
from .loading import Report, load_backbone, locate, published
from .reading import check_fit, read_checkpoint
from .writing import openmmlab_state, save_weights, timm_state

__all__ = [
    'Report',
    'arguments_of',
    'check_fit',
    'constructor_arguments',
    'expected_arguments',
    'load_backbone',
    'locate',
    'published',
    'read_checkpoint',
    'recognise',
    'openmmlab_state',
    'save_weights',
    'timm_state',
]

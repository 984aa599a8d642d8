from .architecture import arguments_of, constructor_arguments, expected_arguments
from .formats import FORMATS, recognise
from .loading import Report, backbone_weights, load_backbone, locate, published
from .reading import check_fit, read_checkpoint
from .writing import openmmlab_state, save_weights, timm_state

__all__ = [
    'FORMATS',
    'Report',
    'arguments_of',
    'backbone_weights',
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

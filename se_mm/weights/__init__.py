"""A checkpoint's way into a backbone: name, file, tensors, tensors with the names of this package, loaded weights."""

from .comparison import expected_arguments
from .download import fetch, released
from .formats import OWN
from .init_cfg import Pretrained, loading_arguments
from .loading import LoadReport, load_backbone, load_model, load_weights
from .reading import read_checkpoint
from .recognition import Weights, recognise

__all__ = [
    'OWN',
    'LoadReport',
    'Pretrained',
    'Weights',
    'expected_arguments',
    'fetch',
    'load_backbone',
    'load_model',
    'load_weights',
    'loading_arguments',
    'read_checkpoint',
    'recognise',
    'released',
]

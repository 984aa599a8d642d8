from .places365 import Places365
from .svhn import SVHN

__all__ = ['SVHN', 'Places365']

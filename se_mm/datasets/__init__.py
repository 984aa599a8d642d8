"""Data sets that OpenMMLab lacks, and checks of any data set's files."""

from .cached import LoadImageOnce
from .places365 import Places365
from .svhn import SVHN

__all__ = ['SVHN', 'LoadImageOnce', 'Places365']

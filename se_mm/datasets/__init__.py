"""Data sets and transforms that OpenMMLab lacks, and checks of any data set's files."""

from .cached import LoadImageOnce
from .corner_crop import CornerCrop
from .cutout import Cutout
from .places365 import Places365
from .skip_broken import SkipBroken
from .svhn import SVHN

__all__ = ['SVHN', 'CornerCrop', 'Cutout', 'LoadImageOnce', 'Places365', 'SkipBroken']

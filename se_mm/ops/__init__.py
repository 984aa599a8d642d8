"""Arithmetic of SE blocks. Needs torch, and Triton on GPUs; nothing of OpenMMLab.

>>> from se_mm.ops import se_tail
>>> out = se_tail(conv3(x), shortcut, bn3, lambda z: fc2(fc1(z).relu()).sigmoid())
"""

from .choice import BACKENDS, Choice, choose, has_hooks, is_affine, is_batch_norm, is_exporting, why_not_fused
from .excitation import Excitation
from .passes import accumulation_dtype
from .tail import plain_se_tail, scale_add, se_tail

__all__ = [
    'accumulation_dtype',
    'BACKENDS',
    'Choice',
    'choose',
    'Excitation',
    'has_hooks',
    'is_affine',
    'is_batch_norm',
    'is_exporting',
    'plain_se_tail',
    'scale_add',
    'se_tail',
    'why_not_fused',
]

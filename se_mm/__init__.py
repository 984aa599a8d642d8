"""Squeeze-and-Excitation networks for OpenMMLab.

Importing the package registers the backbones: ``type='SEResNet'`` in an mmdet config,
``type='se_mm.SEResNet'`` in any OpenMMLab config. Without mmengine and mmcv there is only ``se_mm.ops``.
"""

from importlib.util import find_spec

from .version import __version__

__all__ = ['__version__']

if find_spec('mmengine') is not None and find_spec('mmcv') is not None:
    from . import models, weights  # noqa: F401  weights let MMEngine read .safetensors

    __all__ += ['models', 'weights']

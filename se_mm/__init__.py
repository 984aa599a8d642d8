"""Squeeze-and-Excitation networks for OpenMMLab.

Importing the package registers the backbones: ``type='SEResNet'`` in an mmdet config,
``type='se_mm.SEResNet'`` in any OpenMMLab config.
"""

from .utils.versions import check_versions
from .version import __version__

check_versions()

from . import models  # noqa: E402  after the check, which explains what an import error would not

__all__ = ['__version__', 'models']

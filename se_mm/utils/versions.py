"""Which versions of torch and OpenMMLab work together.

The OpenMMLab packages exist twice under the same import names: the original ones, and a
maintained fork whose distributions are named ``onedl-*``.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

DISTRIBUTIONS = dict(
    torch=('torch',),
    torchvision=('torchvision',),
    numpy=('numpy',),
    mmengine=('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    mmcv=('onedl-mmcv', 'mmcv', 'mmcv-lite'),
    mmdet=('onedl-mmdetection', 'mmdet'),
    mmpretrain=('onedl-mmpretrain', 'mmpretrain'),
    pycocotools=('pycocotools',),
    onnxruntime=('onnxruntime',),
    openvino=('openvino',),
    se_mm=('se_mm',),
)
REMEDY = 'Install one that works: pip install "se_mm[onedl]" (maintained) or "se_mm[openmmlab]" (original).'


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the installed ones of the packages this project builds on."""
    found = dict(python=platform.python_version())
    for name, distributions in DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found[name] = version(distribution)
                break
            except PackageNotFoundError:
                continue
    return found


def conflict(versions: dict[str, str]) -> str | None:
    """What does not work in a set of versions, None if nothing is known."""
    missing = [name for name in ('torch', 'mmengine', 'mmcv') if name not in versions]
    if missing:
        return f'{" and ".join(missing)} not installed.'
    for name, oldest in dict(torch='2.5', numpy='1.26').items():
        if name in versions and Version(versions[name]) < Version(oldest):
            return f'{name} {versions[name]} is too old: {oldest} or newer is needed.'
    mmengine, mmcv = (Version(versions[name]) for name in ('mmengine', 'mmcv'))
    if mmengine < Version('0.8.3'):
        return f'mmengine {mmengine} is too old: 0.8.3 or newer is needed.'
    if mmcv < Version('2.0.0'):
        return f'mmcv {mmcv} is too old: 2.0.0 or newer is needed.'
    if 'mmdet' in versions:
        mmdet = Version(versions['mmdet'])
        if mmdet < Version('3.0.0'):
            return f'mmdet {mmdet} is too old: 3.0.0 or newer is needed.'
        if mmdet < Version('3.4') and mmcv >= Version('2.2.0'):
            return f'mmdet {mmdet} refuses mmcv {mmcv}: mmcv below 2.2.0 is needed.'
    if 'mmpretrain' in versions and Version(versions['mmpretrain']) < Version('1.0.0'):
        return f'mmpretrain {versions["mmpretrain"]} is too old: 1.0.0 or newer is needed.'
    return None


def check_versions() -> None:
    """Raise ImportError with the reason and the remedy if the installed versions do not fit."""
    problem = conflict(installed_versions())
    if problem:
        raise ImportError(f'se_mm cannot run here: {problem} {REMEDY}')

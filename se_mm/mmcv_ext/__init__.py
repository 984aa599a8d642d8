"""A stand-in for ``mmcv._ext``, mmcv's compiled operators, where mmcv came without them.

Compiling mmcv takes 8 to 15 minutes on 2 cores, a C++ compiler, for GPUs also nvcc, and a torch for which mmcv still
compiles. Detectors use a few of its operators. torchvision, which is installed anyway, has NMS, RoIAlign and
deformable convolution for CPU and CUDA, and a few lines of torch are enough for others. ``mmcv.ops`` stays as it is:
its modules and autograd functions call this package instead of the compiled one, by the names and signatures that
``mmcv/ops/csrc/pytorch/pybind.cpp`` gives.

Importing this package installs it. It has to be imported before mmdet::

    custom_imports = dict(imports=['se_mm.mmcv_ext'])  # in a config
    import se_mm.mmcv_ext  # in a program, before mmdet.apis
    python -m se_mm.mmcv_ext PROGRAM ...  # on the command line, for a program that imports mmdet first

Nothing happens where mmcv has compiled operators. ``mmcv.ops`` that was imported before has them, or it failed and
can be imported again now; but a library that caught the failure, as mmdet does, goes on without the operators.
"""

from __future__ import annotations

# ruff: noqa: F401  the names of mmcv._ext
import logging
import os
import sys
from importlib.util import find_spec
from typing import NoReturn

import torch
import torchvision

from .boxes import bbox_overlaps, nms, nms_match, softnms
from .convolutions import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from .losses import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .regions import (
    deform_roi_pool_backward,
    deform_roi_pool_forward,
    prroi_pool_backward,
    prroi_pool_coor_backward,
    prroi_pool_forward,
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)

COMPILED = 'MMCV_WITH_OPS=1 bash tools/setup_env.sh in a clone of se_mm compiles one; docs/install.md has it by hand'


def install() -> None:
    """Let ``mmcv.ops`` call this package if mmcv has no compiled operators; the first process says so, once.

    Raises:
        ModuleNotFoundError: mmcv is not installed.
    """
    if find_spec('mmcv._ext') is None:
        import mmcv
        from mmengine.logging import print_log

        mmcv._ext = sys.modules['mmcv._ext'] = sys.modules[__name__]
        if os.environ.get('RANK', '0') == '0':
            line = f'mmcv has no compiled operators: torchvision {torchvision.__version__} stands in'
            print_log(line, logger='current')
            if 'mmdet.structures' in sys.modules:
                late = 'mmdet was imported before and goes on without them: import se_mm.mmcv_ext first'
                print_log(late, logger='current', level=logging.WARNING)


def get_compiler_version() -> str:
    return f'none, torchvision {torchvision.__version__} stands in'


def get_compiling_cuda_version() -> str:
    """The CUDA version of torchvision's operators, 'not available' if they were compiled for CPUs only."""
    version = torch.ops.torchvision._cuda_version()  # 13000 for 13.0
    return f'{version // 1000}.{version % 1000 // 10}' if version > 0 else 'not available'


def __getattr__(name: str) -> object:
    """An operator that has no stand-in: mmcv.ops looks it up when it is imported; it fails when it is called."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f'the operator {name} needs an mmcv with compiled operators: {COMPILED}')

    return missing


install()

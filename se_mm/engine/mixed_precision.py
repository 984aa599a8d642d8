"""Automatic mixed precision without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn

from se_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Train on CPUs with convolutions and matrix products in bfloat16, and weights in float32.

    bfloat16 has the range of float32, so losses need no scale. MMEngine's AmpOptimWrapper needs a GPU. CPUs with AMX
    instructions train faster this way, CPUs without bfloat16 instructions slower.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast('cpu', torch.bfloat16):
            yield

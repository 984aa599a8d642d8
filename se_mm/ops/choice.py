"""Which backend computes a tail, and why."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

BACKENDS = ('plain', 'torch', 'triton')
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SMALL = 2**18  # elements; below, the many operations on N x C numbers outweigh the passes that are saved
BATCH_NORMS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


class Choice(NamedTuple):
    """How a tail is computed: one of ``BACKENDS``, and why."""

    backend: str
    reason: str


SYMBOLIC = Choice('plain', 'symbolic traces have standard operations')
IN_PLACE = Choice('plain', 'without gradients, the operations in place are the fastest on the CPU')


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called with a module's input, output or gradients."""
    m = module
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def is_batch_norm(norm: nn.Module) -> bool:
    """Whether a module normalises as batch norm does, such as MMEngine's SyncBatchNorm and what that becomes on one
    device."""
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and type(norm).forward in BATCH_NORMS


def is_exporting() -> bool:
    """Whether torch.export traces; torch 2.5 does not tell."""
    return getattr(torch.compiler, 'is_exporting', bool)()


def is_affine(norm: nn.Module) -> bool:
    """Whether a norm computes slope * x + shift with constants of the channels: Identity, batch norm in evaluation."""
    return type(norm) is nn.Identity or (is_batch_norm(norm) and not norm.training and norm.running_mean is not None)


def why_not_fused(norm: nn.Module, **skipped: nn.Module) -> str | None:
    """Why a tail with this norm can never be fused; None if it can.

    Args:
        norm: the norm before SE.
        skipped: by name, further modules that would not be called, which hooks would miss.
    """
    if not is_batch_norm(norm) and type(norm) is not nn.Identity:
        return f'{type(norm).__name__} is not BatchNorm2d, SyncBatchNorm or Identity'
    if has_hooks(norm):
        return f'{type(norm).__name__} has hooks, which want to see its input or output'
    for name, module in skipped.items():
        if has_hooks(module):
            return f'{name} has hooks, which want to see its input or output'
    return None


def choose(x: Tensor, identity: Tensor, norm: nn.Module) -> Choice:
    """What :func:`se_tail` does with these arguments.

    'plain' runs the operations one after the other, 'torch' the passes as torch operations,
    'triton' the passes as Triton kernels.
    """
    why = why_not_fused(norm)
    return Choice('plain', why) if why else choose_fusible(x, identity, norm)


def choose_fusible(x: Tensor, identity: Tensor, norm: nn.Module) -> Choice:
    """:func:`choose` for a norm that can be fused."""
    if not isinstance(x, Tensor):
        return SYMBOLIC
    group, compiling = process_group(norm), torch.compiler.is_compiling()
    if not torch.is_grad_enabled() and x.device.type == 'cpu' and group is None and not compiling:
        return IN_PLACE
    why = _why_not_here(x, identity, group, compiling)
    if why:
        return Choice('plain', why)
    if compiling:
        return Choice('torch', 'torch.compile turns each pass into one kernel')
    if x.is_cuda:
        return Choice('triton', 'one Triton kernel for each pass')
    if group is not None:
        return Choice('torch', 'torch has no SyncBatchNorm on the CPU')
    if x.numel() < SMALL:
        return Choice('plain', f'maps of less than {SMALL} elements are faster so on the CPU')
    return Choice('torch', 'torch operations are the fastest on the CPU')


def _why_not_here(x: Tensor, identity: Tensor, group: dist.ProcessGroup | None, compiling: bool) -> str | None:
    if torch.jit.is_tracing() or is_exporting():
        return 'exported graphs have standard operations'
    if x.device.type not in ('cpu', 'cuda'):
        return f'no kernels for {x.device.type}'
    if x.is_cuda and not compiling and (why := _why_not_triton(x.device)):
        return why
    if compiling and group is not None:
        return 'torch.compile does not trace the communication of SyncBatchNorm'
    why = _why_not_maps(x, identity)
    return why or (None if identity.dtype == x.dtype else 'identity differs from x in dtype')


def _why_not_maps(x: Tensor, identity: Tensor) -> str | None:
    if x.dtype not in DTYPES:
        return f'no kernels for {x.dtype}'
    if x.dim() != 4 or x.numel() == 0:
        return f'x of shape {tuple(x.shape)} is not (N, C, H, W) with elements'
    if (identity.shape, identity.device) != (x.shape, x.device):
        return 'identity differs from x in shape or device'
    return None


@functools.cache
def _why_not_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec('triton') is None:
        return 'Triton is not installed'
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f'Triton does not support {torch.cuda.get_device_name(device)}'
    return _why_no_driver()


@functools.cache
def _why_no_driver() -> str | None:
    """Triton compiles its driver when it starts, with a C compiler and the headers of Python. Warns if it cannot."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:  # no compiler, no headers, a broken cache
        why = f'Triton does not start ({error})'
        warnings.warn(f'SE is not fused: {why}. Install gcc and the headers of Python (python3-dev)', stacklevel=2)
        return why
    return None


def why_not_insisted(backend: str, x: Tensor, identity: Tensor) -> str | None:
    """Why a backend that was asked for cannot compute a tail; None if it can."""
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'  # Triton's own way to run on the CPU
    if backend == 'triton' and not x.is_cuda and not interpreted:
        return f'Triton needs a GPU, and x is on {x.device.type}'
    why = _why_not_triton(x.device) if backend == 'triton' and x.is_cuda else None
    return why or _why_not_maps(x, identity)


def process_group(norm: nn.Module) -> dist.ProcessGroup | None:
    """Processes that share the batch statistics of ``norm`` now."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None

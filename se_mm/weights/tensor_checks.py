"""Tensors that torch would copy wrongly, or not at all, and values that no training leaves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from se_mm.utils import InputError


def check_tensors(given: dict[str, Tensor], model: nn.Module, checkpoint: str) -> None:
    """Check those of a checkpoint's tensors that a model has a place for.

    Args:
        given: with the model's names.
        model: has not loaded them yet.
        checkpoint: for the error.

    Raises:
        InputError: tensors that are sparse, nested, quantized or without values; other kinds of numbers than the
            model's; NaN or infinite values; negative variances; weights of convolutions or linear layers that are all
            zero. The error has the number of such tensors and the first name.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    pairs = {name: (tensor, own[name]) for name, tensor in given.items() if name in own}
    faults = {}
    for name, (tensor, place) in pairs.items():
        if fault := _wrong_kind(name, tensor, place):
            faults.setdefault(fault, []).append(name)
    if not faults:  # other tensors have values to look at
        layers = {
            f'{name}.weight'.removeprefix('.')
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        }
        for name, (tensor, place) in pairs.items():
            if fault := _wrong_values(name, tensor, place, name in layers):
                faults.setdefault(fault, []).append(name)
    if faults:
        found = '; '.join(f'{len(names)} {fault} (e.g. {names[0]})' for fault, names in faults.items())
        raise InputError(
            f'checkpoint {checkpoint} is refused: of {len(pairs)} tensors {found}. Use an earlier checkpoint, or copy '
            'or download the file again'
        )


def _is_halved_counter(name: str, tensor: Tensor) -> bool:
    """Whether somebody halved a counter of batches with all other tensors; batch norms hardly ever use the counter."""
    return name.endswith('num_batches_tracked') and tensor.is_floating_point()


def _wrong_kind(name: str, tensor: Tensor, place: Tensor) -> str | None:
    if tensor.is_meta:
        return 'have no values (device meta)'
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return 'are sparse, nested or quantized, and the model needs dense ones'
    if _numbers(tensor) != _numbers(place) and not _is_halved_counter(name, tensor):
        return f'hold {_numbers(tensor)} numbers, and the model needs {_numbers(place)} ones'
    return None


def _numbers(tensor: Tensor) -> str:
    if tensor.is_complex():
        return 'complex'
    return 'floating' if tensor.is_floating_point() else 'integer'


@torch.no_grad()
def _wrong_values(name: str, tensor: Tensor, place: Tensor, of_layer: bool) -> str | None:
    if not tensor.is_floating_point() or not tensor.numel() or _is_halved_counter(name, tensor):
        return None
    values = tensor.float() if tensor.dtype.itemsize < 4 else tensor
    # A sum that is finite has finite terms, and takes a tenth of the time.
    total = values.sum()
    if not total.isfinite() and not values.isfinite().all() and place.isfinite().all():
        return 'have NaN or infinite values'
    if name.endswith('running_var') and values.min() < 0:
        return 'are negative variances'
    # Gates of SE that start as the identity are zero, and so are layers that their networks build as zero.
    if of_layer and 'se_layer' not in name and total == 0 and not values.any() and place.any():
        return 'are weights of layers that are all zero'
    return None

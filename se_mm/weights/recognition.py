"""Which format a checkpoint's tensors have, and the same tensors with the names of this package."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from se_mm.utils import InputError

from .formats import FORMATS, OWN, Format, Rules
from .meta import properties_in

PLACEHOLDERS = dict(l=r'layer\d+\.\d+', s=r'\d+', i=r'\d+', n=r'\d+', p=r'\w+')
# Parts of backbones here.
BACKBONE = re.compile(r'(conv|bn|gn|in|ln|norm)\d*\.|stem\.|(layer|stage)\d')
USUAL_PREFIXES = ('', 'module.', 'backbone.', 'module.backbone.')


class Weights(NamedTuple):
    """A backbone's weights with the names of this package.

    Attributes:
        format: what they were.
        prefix: what stood before their names.
        tensors: the backbone's.
        head: the classifier's, ``weight`` and ``bias``; empty if there is none.
        left_over: names, as they were, of the tensors that are neither.
        renamed: number of tensors with another name than before.
        transposed: number of tensors that were transposed, reshaped or turned from BGR to RGB.
        source: the checkpoint, for errors.
    """

    format: Format
    prefix: str
    tensors: dict[str, Tensor]
    head: dict[str, Tensor]
    left_over: list[str]
    renamed: int
    transposed: int
    source: str = ''

    @property
    def have_se(self) -> bool:
        """Whether SE layers are among the backbone's tensors."""
        return any('se_layer' in name for name in self.tensors)


def recognise(tensors: dict[str, Tensor], source: str, prefix: str | None = None, meta: dict | None = None) -> Weights:
    """The backbone among a checkpoint's tensors.

    Args:
        tensors: what the checkpoint holds.
        source: the checkpoint, for errors.
        prefix: of the backbone's names; None to find it.
        meta: what the checkpoint says of itself: ``backbone`` and ``data_preprocessor`` if converted here, MMEngine's
            ``cfg`` if trained.

    Returns:
        The weights with the names of this package. Names that are of no format in ``FORMATS`` stay as they are, and
        the format is ``OWN``.

    Raises:
        InputError: no tensor has the prefix; none is given and there are several backbones; weights of a
            network that does not exist here.
    """
    if prefix is not None:
        prefix = f'{prefix.rstrip(".")}.' if prefix else ''
        if not any(name.startswith(prefix) for name in tensors):
            starts = sorted({name.partition('.')[0] for name in tensors})[:8]
            raise InputError(f"{source}: no tensor's name starts with prefix={prefix!r}; they start with {starts}")
    renamed = _with_torch_names(tensors, source)
    for format in FORMATS:
        state = tensors if format.torch_names else renamed
        found = [p for anchor in format.anchors for p in _prefixes(state, anchor) if prefix in (None, p)]
        if not found:
            continue
        usual = [p for p in found if p in USUAL_PREFIXES]
        if len(found) > 1 and len(usual) != 1:
            raise InputError(f'{source} has several backbones: choose one by init_cfg.prefix, of {found}')
        chosen = (usual or found)[0]
        names = '\n'.join(name.removeprefix(chosen) for name in state if name.startswith(chosen))
        if all(re.search(mark, names, re.MULTILINE) for mark in format.marks):
            if format.refusal:
                raise InputError(f'{source} ({format.name}) has no equal here: {format.refusal}')
            found = _convert(format._replace(**properties_in(meta, chosen)), chosen, state)
            return found._replace(source=source)
    return _as_they_are(tensors, prefix)._replace(source=source)


def _as_they_are(tensors: dict[str, Tensor], prefix: str | None) -> Weights:
    if prefix is None:
        longest_first = sorted(USUAL_PREFIXES, key=len, reverse=True)
        prefix = next(p for p in longest_first if any(name.startswith(p) for name in tensors))
    inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    outside = [n for n in tensors if not n.startswith(prefix)]
    return Weights(OWN, prefix, inside, {}, outside, renamed=0, transposed=0)


def _prefixes(names: Iterable[str], anchor: str) -> list[str]:
    return [name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f'.{anchor}')]


def _with_torch_names(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Parameters of layers named as in torch, for Caffe, MXNet and PaddlePaddle."""
    suffixes = {'gamma': 'weight', 'beta': 'bias', '_mean': 'running_mean', '_variance': 'running_var'}
    result = {}
    for name, tensor in tensors.items():
        layer, _, parameter = name.rpartition('.')
        if parameter not in ('0', '1', '2'):
            result[f'{layer}.{suffixes.get(parameter, parameter)}' if layer else name] = tensor
        elif layer.endswith('/bn'):  # Caffe's BatchNorm
            if parameter != '2':  # the factor by which the others have to be divided
                factor = tensors.get(f'{layer}.2')
                if factor is not None and (factor.is_meta or factor.is_sparse or factor.numel() != 1):
                    raise InputError(f'{source}: {layer}.2 is a factor of statistics, and not one number')
                scale = 1 if factor is None or factor.item() == 0 else 1 / factor.item()
                result[f'{layer}.{("running_mean", "running_var")[int(parameter)]}'] = tensor * scale
        elif parameter == '2':  # of no layer that these projects have
            result[name] = tensor
        else:
            result[f'{layer.removesuffix("/scale")}.{("weight", "bias")[int(parameter)]}'] = tensor
    return result


@functools.cache
def _pattern(template: str) -> re.Pattern:
    pattern = re.sub(r'\\{(\w)\\}', lambda m: f'(?P<{m[1]}>{PLACEHOLDERS[m[1]]})', re.escape(template))
    return re.compile(pattern)


def rename(name: str, rules: Rules) -> str:
    """The name by the first rule whose left side fits, otherwise as it is."""
    for foreign, own in rules:
        if found := _pattern(foreign).fullmatch(name):
            shifted = lambda m: str(int(found[m[1]]) + int(m[2])) if m[2] else found[m[1]]  # noqa: B023, E731
            return re.sub(r'{(\w)([+-]\d+)?}', shifted, own)
    return name


def _convert(format: Format, prefix: str, tensors: dict[str, Tensor]) -> Weights:
    backbone, head, left_over, renamed, transposed = {}, {}, [], 0, 0
    own_head = re.compile(rf'(?:head\.fc|{re.escape(format.head)})\.(weight|bias)')
    for original, tensor in tensors.items():
        inside = original.startswith(prefix)
        name = original.removeprefix(prefix if inside else 'module.')
        own = rename(name, format.rules)
        if found := own_head.fullmatch(name):
            head[found[1]] = tensor.t() if format.transposes and tensor.dim() == 2 else tensor
        elif not inside or not BACKBONE.match(own):
            left_over.append(original)
        else:
            converted = _to_torch(own, tensor, format)
            backbone[own] = converted
            renamed += own != name
            transposed += converted is not tensor
    return Weights(format, prefix, backbone, head, left_over, renamed, transposed)


def _to_torch(name: str, tensor: Tensor, format: Format) -> Tensor:
    """A tensor in the layout of this package's parameter of that name."""
    if tensor.layout is not torch.strided:  # no layout that a model takes
        return tensor
    if tensor.dim() == 2 and '.se_layer.' in name:
        return (tensor.t() if format.transposes else tensor)[:, :, None, None]
    if format.bgr and tensor.dim() == 4 and name in ('conv1.weight', 'stem.0.weight', 'stem.0.conv.weight'):
        return tensor.flip(1)
    return tensor

"""The gates of SE layers while a model runs: reading and replacing them.

"Gates" are what the excitation gives, s in equation 3 of Squeeze-and-Excitation Networks,
https://arxiv.org/abs/1709.01507.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from se_mm.models.cifar import PreActBlock
from se_mm.models.gate_source import gate_source, observe_gates
from se_mm.models.residual import SEResidual
from se_mm.models.shake import ShakeBlock
from se_mm.utils import InputError

BLOCK = re.compile(r'((?:^|.*\.)(layer|stage)(\d+)\.(\d+))\.')


class GateLayer(NamedTuple):
    """An SE layer of a model.

    Attributes:
        name: as in the papers, SE_2_3 for the third block of stage 2, the first residual stage; the path in models
            that are no residual networks, or where a block has several SE layers.
        path: of the module in the model.
        source: the module whose output are the gates, (N, C), (N, C, 1, 1), or (N, C, H, W) without squeeze.
    """

    name: str
    path: str
    source: nn.Module


class Gates(NamedTuple):
    """The gates of one SE layer for N images.

    Attributes:
        mean: (N, C); the mean over positions if every position has a gate of its own.
        spread: (N, C), standard deviation over positions; None if there is one gate a channel.
    """

    mean: Tensor
    spread: Tensor | None


class Batch(NamedTuple):
    """Images and what is known of them.

    Attributes:
        inputs: for the model, of N images.
        members: groups of each image, see :meth:`se_mm.analysis.gate_statistics.GateStatistics.add`.
        numbers: of the images in their data set.
    """

    inputs: object
    members: Sequence[Iterable[int]] | None
    numbers: Sequence[int]


def _paper_name(model: nn.Module, path: str) -> str | None:
    """The stem is stage 1; residual stages are called layer1 and so on, in our networks for CIFAR stage1."""
    if not (found := BLOCK.match(path)):
        return None
    block, kind, stage, number = found.groups()
    if kind == 'stage' and not isinstance(model.get_submodule(block), SEResidual | PreActBlock | ShakeBlock):
        return None
    return f'SE_{int(stage) + 1}_{int(number) + 1}'


def gate_layers(model: nn.Module, names: Sequence[str] | None = None) -> list[GateLayer]:
    """The SE layers of a model: those of this project, timm, torchvision, mmpretrain and mmdet.

    Args:
        model: of any package.
        names: names or paths of some of them, None for all that see whole images: not those of a detector's shared
            head, which runs on regions.

    Raises:
        InputError: the model has no SE layer that sees whole images, or none of a given name.
    """
    found = [(path, source) for path, module in model.named_modules() if (source := gate_source(module)) is not None]
    if not found:
        raise InputError(f'{type(model).__name__} has no SE layer')
    paper = {path: name for path, _ in found if (name := _paper_name(model, path))}
    uses = Counter(paper.values())
    layers = [GateLayer(paper[path] if uses[paper.get(path)] == 1 else path, path, source) for path, source in found]
    if names is None:
        if not (whole := [layer for layer in layers if not re.search(r'(^|\.)roi_head\.', layer.path)]):
            raise InputError(
                f'all SE layers of {type(model).__name__} are in its roi_head, which runs on regions: gates of regions '
                'are not looked at'
            )
        return whole
    known = {key: layer for layer in layers for key in (layer.path, layer.name)}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f'{unknown[0]} is no SE layer: choose of {", ".join(layer.name for layer in layers)}')
    wanted = {known[name].path for name in names}
    return [layer for layer in layers if layer.path in wanted]


def flat_gates(output: Tensor) -> Gates:
    """Gates of an SE layer from the output of :attr:`GateLayer.source`."""
    if output.dim() == 2 or output.shape[2:].numel() == 1:
        return Gates(output.flatten(1), None)
    wide = output.float()
    return Gates(wide.mean((2, 3)), wide.std((2, 3), correction=0))


class GateRecorder:
    """Keeps the gates of all SE layers while a model runs, in training or evaluation.

    >>> with GateRecorder(model) as recorder:
    ...     model(images)
    ...     gates = recorder.take()  # of these images: gates['SE_2_1'].mean has the shape (N, 256)

    Outputs and gradients stay as they are, to the last bit, and SE stays fused. A model that torch.compile
    has compiled is compiled anew, with the recorder inside.

    Args:
        model: with SE layers.
        names: of :func:`gate_layers`.

    Raises:
        InputError: of :func:`gate_layers`.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        self.model, self.layers = model, gate_layers(model, names)
        self._found: dict[str, list[Tensor]] = {layer.name: [] for layer in self.layers}
        self._ends: list[Callable[[], object]] = []

    def __enter__(self) -> GateRecorder:
        _compile_anew()
        for layer in self.layers:
            self._ends.append(observe_gates(self.model.get_submodule(layer.path), self._keeper(layer.name)))
        return self

    def __exit__(self, *error: object) -> None:
        _compile_anew()
        while self._ends:
            self._ends.pop()()

    def _keeper(self, name: str) -> Callable[[Tensor], None]:
        found = self._found[name]

        def keep(gates: Tensor) -> None:
            # a block with with_cp runs once more in backward
            if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
                found.append(gates.detach())

        return keep

    def take(self) -> dict[str, Gates]:
        """The gates since the last call, by layer, for the images in their order. Layers that did not run are left out.

        The tensors have the dtype and the device of the model's, or float32 where a kernel computes the gates.
        """
        taken = {}
        for name, outputs in self._found.items():
            if outputs:
                parts = [flat_gates(output) for output in outputs]
                spreads = [part.spread for part in parts if part.spread is not None]
                taken[name] = Gates(torch.cat([part.mean for part in parts]), torch.cat(spreads) if spreads else None)
                outputs.clear()
        return taken


class ReplacedGates:
    """Lets SE layers give other gates than they compute.

    >>> with ReplacedGates({layer: torch.ones_like for layer in gate_layers(model)}):
    ...     model(images)  # as if there were no SE

    Args:
        replacements: for a layer, a function from its gates (N, C), (N, C, 1, 1) or (N, C, H, W) to gates of the same
            shape and dtype.
    """

    def __init__(self, replacements: Mapping[GateLayer, Callable[[Tensor], Tensor]]) -> None:
        self.replacements = replacements
        self._handles = []

    def __enter__(self) -> ReplacedGates:
        _compile_anew()
        for layer, replace in self.replacements.items():
            hook = lambda module, arguments, output, replace=replace: replace(output)  # noqa: E731
            self._handles.append(layer.source.register_forward_hook(hook))
        return self

    def __exit__(self, *error: object) -> None:
        _compile_anew()
        for handle in self._handles:
            handle.remove()


def weights_digest(model: nn.Module) -> str:
    """Hexadecimal SHA-256 of all weights and buffers that a checkpoint of a model has."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _compile_anew() -> None:
    """What torch.compile has made does not see hooks that come or go later."""
    if 'torch._dynamo' in sys.modules:
        torch.compiler.reset()

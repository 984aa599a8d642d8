"""Evaluations of one batch that differ from some layer on only: what comes before is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from se_mm.ops import has_hooks

from .gates import GateLayer


@dataclass
class Call:
    """A call of a part of the model.

    Attributes:
        part: that was called.
        output: what the part returned, None if that can't be given back.
        versions: how often each tensor of ``output`` had been written to when the part returned.
    """

    part: nn.Module
    output: Tensor | list[Tensor] | tuple[Tensor, ...] | None
    versions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.versions = _versions([self.output])

    def look(self) -> None:
        """Forget the output if something has been written into it."""
        if _versions([self.output]) != self.versions:
            self.output, self.versions = None, []


class SharedPrefix:
    """Runs a model on a batch, and then again from some of its SE layers on.

    A model calls the same parts in the same order with the same inputs until the first thing that differs. So outputs
    of parts are kept in the first run, and given back in later runs. A part is computed again if something was written
    into its output, if it wrote into its arguments, if there are hooks inside, or if it returned something other than
    tensors. Parts are the modules with an SE layer (the blocks), and the largest modules without any. A part has to be
    a function of its arguments.

    Args:
        model: of any package; one that torch.compile was called for runs whole.
        layers: all SE layers of the model.
    """

    def __init__(self, model: nn.Module, layers: Sequence[GateLayer]) -> None:
        paths = [layer.path for layer in layers]
        blocks = {_block(model, path, paths) for path in paths}
        self.parts = [] if _is_compiled(model) else list(dict.fromkeys(_parts(model, blocks)))
        self.sources = {layer.source for layer in layers}
        self.calls: list[Call] = []

    def run(self, work: Callable[[], object]) -> object:
        """Run the model, and keep what its parts return.

        Args:
            work: runs the model on a batch, without gradients.
        """
        self.calls.clear()
        with self._in_place_of_parts(self._keep):
            outputs = work()
        last = max((i for i, call in enumerate(self.calls) if _contains(call.part, self.sources)), default=0)
        del self.calls[last + 1 :]  # of heads
        self._look()
        return outputs

    def run_from(self, layers: Sequence[GateLayer], work: Callable[[], object]) -> object:
        """Run the model again; some layers may differ.

        Args:
            layers: parts that were called before the parts of these layers are not computed.
            work: of :meth:`run`.
        """
        self._look()
        sources = {layer.source for layer in layers}
        first = next((i for i, call in enumerate(self.calls) if _contains(call.part, sources)), len(self.calls))
        left = self.calls[:first]

        def give_back(part: nn.Module, forward: Callable, *args: object, **kwargs: object) -> object:
            if left and left[0].part is not part:
                left.clear()  # another order than before
            output = left.pop(0).output if left else None
            if output is None:
                return forward(*args, **kwargs)
            return list(output) if isinstance(output, list) else output

        with self._in_place_of_parts(give_back):
            outputs = work()
        self._look()
        return outputs

    def clear(self) -> None:
        """Forget what was kept."""
        self.calls.clear()

    def _keep(self, part: nn.Module, forward: Callable, *args: object, **kwargs: object) -> object:
        arguments = [*args, *kwargs.values()]
        before = _versions(arguments)
        output = forward(*args, **kwargs)
        if _versions(arguments) == before and _can_be_kept(part, output):
            self.calls.append(Call(part, list(output) if isinstance(output, list) else output))
        else:
            self.calls.append(Call(part, None))
        return output

    def _look(self) -> None:
        for call in self.calls:
            call.look()

    @contextmanager
    def _in_place_of_parts(self, function: Callable) -> Iterator[None]:
        """Let a function be called with part, forward and arguments, whenever a part is called."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.callback(_restore, part, vars(part).get('forward'))
                part.forward = partial(function, part, part.forward)
            yield


def _block(model: nn.Module, path: str, paths: Sequence[str]) -> nn.Module:
    """The module around an SE layer, up to the one that stands in a sequence or beside modules with other SE layers.

    Code around a smaller module often writes into the output: torchvision's blocks add the shortcut so.
    """
    path = path.rpartition('.')[0]
    while parent := path.rpartition('.')[0]:
        alone = sum(other.startswith(f'{parent}.') for other in paths) == 1
        if not alone or isinstance(model.get_submodule(parent), nn.Sequential | nn.ModuleList):
            break
        path = parent
    return model.get_submodule(path)


def _parts(module: nn.Module, blocks: set[nn.Module]) -> Iterator[nn.Module]:
    for child in module.children():
        if child not in blocks and not blocks.isdisjoint(child.modules()):
            yield from _parts(child, blocks)
        elif not isinstance(child, torch.jit.ScriptModule):  # whose forward cannot be replaced
            yield child


def _contains(part: nn.Module, sources: set[nn.Module]) -> bool:
    return not sources.isdisjoint(part.modules())


def _restore(part: nn.Module, forward: Callable | None) -> None:
    del part.forward
    if forward is not None:  # the object had a forward beside that of its class
        part.forward = forward


def _is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile was called for a module: what it has compiled does not see other functions."""
    return any(hasattr(module, '_orig_mod') or module._compiled_call_impl is not None for module in model.modules())


def _versions(values: Sequence[object]) -> list[int]:
    """How often tensors, alone or in lists and tuples, have been written to."""
    versions = []
    for value in values:
        if isinstance(value, list | tuple):
            versions += _versions(value)
        elif isinstance(value, Tensor) and not value.is_inference():
            versions.append(value._version)
    return versions


def _can_be_kept(part: nn.Module, output: object) -> bool:
    if any(has_hooks(module) for module in part.modules() if module is not part):
        return False
    tensors = output if type(output) in (list, tuple) else [output]
    return all(isinstance(tensor, Tensor) and not tensor.is_inference() for tensor in tensors)

"""Evaluations of one batch that differ from some layer on only: what comes before is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from .gates import GateLayer


@dataclass
class Call:
    """A call of a part of the model.

    Attributes:
        part: that was called.
        output: what the part returned, None if that can't be given back: no tensor, and no list or tuple of tensors.
        versions: how often each tensor of ``output`` had been written to, when this was last looked up.
        written_by: number of the latest call that wrote into ``output`` later; infinite for code between calls.
    """

    part: nn.Module
    output: Tensor | list[Tensor] | tuple[Tensor, ...] | None
    versions: list[int] = field(default_factory=list)
    written_by: float = -1

    def look(self, number: float) -> None:
        """Find out whether the call with this number has written into the output."""
        versions = [tensor._version for tensor in _tensors(self.output)]
        if versions != self.versions:
            self.versions, self.written_by = versions, max(self.written_by, number)


class SharedPrefix:
    """Runs a model on a batch, and then again from one of its SE layers on.

    A model calls the same parts in the same order with the same inputs until the first thing that differs. So outputs
    of parts are kept in the first run, and given back in later runs, as long as nothing writes into the outputs. Parts
    are the modules with an SE layer (the blocks), and the largest modules without any.

    Args:
        model: of any package.
        layers: all SE layers of the model.
    """

    def __init__(self, model: nn.Module, layers: Sequence[GateLayer]) -> None:
        paths = [layer.path for layer in layers]
        blocks = {_block(model, path, paths) for path in paths}
        self.parts = [] if _is_compiled(model) else list(dict.fromkeys(_parts(model, blocks)))
        self.calls: list[Call] = []

    def run(self, work: Callable[[], object]) -> object:
        """Run the model, and keep what its parts return.

        Args:
            work: runs the model on a batch, without gradients.
        """
        self.calls.clear()
        with self._in_place_of_parts(self._keep):
            outputs = work()
        self._look(math.inf)
        return outputs

    def run_from(self, layer: GateLayer, work: Callable[[], object]) -> object:
        """Run the model again; the model may differ from a layer on.

        Args:
            layer: parts that were called before the part of this layer are not computed.
            work: of :meth:`run`.
        """
        left = self.calls[: self._same(layer)]

        def give_back(part: nn.Module, forward: Callable, *args: object, **kwargs: object) -> object:
            if left and left[0].part is not part:
                left.clear()  # another order than before
            output = left.pop(0).output if left else None
            if output is None:
                return forward(*args, **kwargs)
            return list(output) if isinstance(output, list) else output

        with self._in_place_of_parts(give_back):
            return work()

    def clear(self) -> None:
        """Forget what was kept."""
        self.calls.clear()

    def _same(self, layer: GateLayer) -> int:
        """How many calls need not be computed again."""
        places = (i for i, call in enumerate(self.calls) if layer.source in call.part.modules())
        number = next(places, 0)
        while any(call.written_by >= number for call in self.calls[:number]):
            number -= 1
        return number

    def _keep(self, part: nn.Module, forward: Callable, *args: object, **kwargs: object) -> object:
        self._look(math.inf)
        output = forward(*args, **kwargs)
        call = Call(part, output if _can_be_kept(output) else None)
        self._look(math.inf if call.output is None else len(self.calls))
        call.look(-1)
        self.calls.append(call)
        return output

    def _look(self, number: float) -> None:
        for call in self.calls:
            call.look(number)

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
        if child in blocks or blocks.isdisjoint(child.modules()):
            yield child
        else:
            yield from _parts(child, blocks)


def _restore(part: nn.Module, forward: Callable | None) -> None:
    del part.forward
    if forward is not None:  # the object had a forward beside that of its class
        part.forward = forward


def _is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile was called for a module: what it has compiled does not see other functions."""
    return any(hasattr(module, '_orig_mod') or module._compiled_call_impl is not None for module in model.modules())


def _tensors(output: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor]:
    if output is None:
        return []
    return [output] if isinstance(output, Tensor) else output


def _can_be_kept(output: object) -> bool:
    if type(output) not in (list, tuple):
        output = [output]
    return all(isinstance(tensor, Tensor) and not tensor.is_inference() for tensor in output)

"""What the gates of each SE layer are worth: evaluations with other gates in their place.

Gates are replaced by one (no SE), by their mean over the data (SE that does not look at the image), and by those of
other images (shuffled), of one layer at a time and of all layers from one to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from .comparison import signed
from .gate_bank import MEAN, ONE, REPLACEMENTS, Replacer
from .gate_profile import Share
from .gates import Batch, GateLayer, ReplacedGates, evaluating, gate_layers
from .shared_prefix import SharedPrefix

if TYPE_CHECKING:  # which needs pycocotools
    from .scores import Score, Worth

Step = Callable[[object], object]


class Case(NamedTuple):
    """What is replaced.

    Attributes:
        layer: the layer, or the first one of several.
        replacement: one of ``REPLACEMENTS``.
        onwards: whether all layers from this one to the last are replaced.
    """

    layer: str
    replacement: str
    onwards: bool


def cases(layers: Sequence[GateLayer]) -> list[Case]:
    """All that is tried: every layer alone, and all layers from every one onwards."""
    return [
        Case(layer.name, replacement, onwards)
        for onwards in (False, True)
        for layer in layers
        for replacement in REPLACEMENTS
        if not (onwards and layer is layers[-1])  # which is the layer alone
    ]


class WorthStudy:
    """Evaluates a network with its own gates and with every replacement, batch by batch.

    Blocks before the first replaced gate are computed once a batch.

    Args:
        model: of any package; runs in evaluation mode, and gets its mode back.
        layers: of :func:`gate_layers`, in the order of the network.
        step: from a batch to the outputs of the model, such as ``model.test_step``.
        score: how outputs are judged.
        replacer: what stands in place of gates.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[GateLayer], step: Step, score: Score, replacer: Replacer
    ) -> None:
        self.layers, self.step, self.score, self.replacer = list(layers), step, score, replacer
        self.model = model
        self.own: list = []
        self.kept: dict[Case, list] = {case: [] for case in cases(layers)}
        self.prefix = SharedPrefix(model, gate_layers(model))

    def run(self, batches: Iterable[Batch], advance: Callable[[], object] = lambda: None) -> None:
        """Evaluate batches in all ways.

        Args:
            batches: with inputs for ``step``, which must not change them.
            advance: called after each evaluation of a batch. What it raises ends the run; :meth:`state` then has the
                images that were evaluated in all ways.
        """
        with evaluating(self.model), torch.no_grad():
            for batch in batches:
                try:
                    self._run_batch(batch, advance)
                finally:
                    self.prefix.clear()

    def _run_batch(self, batch: Batch, advance: Callable[[], object]) -> None:
        self.replacer.batch(batch.numbers)
        self.own += self.score.keep(self.prefix.run(partial(self.step, batch.inputs)))
        advance()
        for case, kept in self.kept.items():
            kept += self.score.keep(self._run(batch.inputs, case))
            advance()

    def _run(self, inputs: object, case: Case) -> object:
        first = [layer.name for layer in self.layers].index(case.layer)
        replaced = self.layers[first:] if case.onwards else [self.layers[first]]
        functions = {layer: self.replacer(layer.name, case.replacement) for layer in replaced}
        with ReplacedGates(functions):
            return self.prefix.run_from(replaced, partial(self.step, inputs))

    def state(self) -> tuple[list, list[list]]:
        """What this process has found for the images that all replacements were tried on, an entry for each image."""
        images = min(map(len, self.kept.values()))
        return self.own[:images], [kept[:images] for kept in self.kept.values()]

    def merge(self, states: Sequence[tuple[list, list[list]]]) -> None:
        """Put together what all processes have found."""
        self.own = [entry for own, _ in states for entry in own]
        for i, case in enumerate(self.kept):
            self.kept[case] = [entry for _, found in states for entry in found[i]]

    def results(self, advance: Callable[[], object] = lambda: None) -> dict[Case, Worth]:
        """What each replacement costs.

        Args:
            advance: called after each replacement.
        """
        found = {}
        for case, kept in self.kept.items():
            found[case] = self.score.worth(kept, self.own)
            advance()
        return found


class Verdict(NamedTuple):
    """What the gates of a layer are good for.

    Attributes:
        role: 'idle' (without SE the network is as good), 'static' (with mean gates the network is as good), 'works'
            (worse with mean gates), or 'undecided' (the images are too few to tell).
        classes: 'class-specific' or 'class-agnostic', None without classes.
        reason: the numbers, as a sentence.
    """

    role: str
    classes: str | None
    reason: str


def judge(
    layer: str, worth: Mapping[Case, Worth], score: Score, share: Share | None, *, tolerance: float, specific: float
) -> Verdict:
    """What the numbers say of a layer, with all other layers as they are.

    Args:
        layer: its name.
        worth: of :meth:`WorthStudy.results`.
        score: of the study.
        share: eta squared of the classes, see :func:`se_mm.analysis.gate_profile.eta_squared`; None without classes.
        tolerance: how much worse "as good" may be, in the unit of the score: the upper end of the interval counts.
        specific: share of variance beyond chance from which gates count as class-specific.
    """
    one, mean = (worth[Case(layer, replacement, False)] for replacement in (ONE, MEAN))
    role = 'undecided'
    if one.high <= tolerance:
        role = 'idle'
    elif mean.high <= tolerance:
        role = 'static'
    elif mean.low > 0:
        role = 'works'
    texts = [_sentence('without SE', one, score), _sentence('with mean gates', mean, score)]
    classes = None
    if share is not None:
        classes = 'class-specific' if share.beyond_chance >= specific else 'class-agnostic'
        texts.append(f'classes explain {share.value:.2f} of the variance ({share.by_chance:.2f} by chance)')
    sentence = '; '.join(texts)
    return Verdict(role, classes, f'{sentence[0].upper()}{sentence[1:]}.')


def _sentence(gates: str, found: Worth, score: Score) -> str:
    change = 'equal'
    if found.loss:
        change = f'{abs(found.loss):.2f} {score.unit} {"worse" if found.loss > 0 else "better"}'
    return f'{gates} the {score.name} is {change} (95 %: {signed(found.low, 2)} to {signed(found.high, 2)})'

"""What the gates of each SE layer are worth: evaluations with other gates in their place.

Gates are replaced by one (no SE), by their mean over the data (SE that does not look at the image), and by those of
other images (shuffled), of one layer at a time and of all layers from one to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from se_mm.models.base import Backbone

from .gate_statistics import Share
from .gates import GateLayer, ReplacedGates

if TYPE_CHECKING:  # which needs pycocotools
    from .scores import Score

ONE, MEAN, SHUFFLED = REPLACEMENTS = ('one', 'mean', 'shuffled')
JACKKNIFE_GROUPS = 20
BANK = 512  # images whose gates are kept to be given to other images
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


class Worth(NamedTuple):
    """What a replacement costs.

    Attributes:
        value: of the score with the replacement.
        loss: how much worse than with the network's own gates, in the unit of the score; below 0 is better.
        low, high: 95 % interval of ``loss``, from the images.
    """

    value: float
    loss: float
    low: float
    high: float


class Bank:
    """Gates of the first images, to be given to other images."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, gates: Mapping) -> None:
        """Keep gates, of :meth:`GateRecorder.take`, until there are ``BANK`` images."""
        for name, found in gates.items():
            parts = self.parts.setdefault(name, [])
            room = BANK - sum(map(len, parts))
            if room > 0:
                parts.append(found.mean[:room].clone())

    def gates(self, name: str) -> Tensor:
        """(images, C) of a layer."""
        return torch.cat(self.parts[name])


def _like(gates: Tensor, output: Tensor) -> Tensor:
    """Gates (N, C) or (C,) in the shape and dtype of what they replace."""
    gates = gates.to(output).expand(output.shape[:2])
    return gates.reshape(*output.shape[:2], *[1] * (output.dim() - 2)).expand_as(output)


class Replacer:
    """Makes the functions that replace gates.

    Args:
        means: (C,) of each layer.
        bank: at least two images.
        seed: of the shuffling.
    """

    def __init__(self, means: Mapping[str, Tensor], bank: Bank, seed: int = 0) -> None:
        self.means = means
        self.banks = {name: bank.gates(name) for name in means}
        self.seed, self.first = seed, 0

    def batch(self, first: int) -> None:
        """Say the place of the next batch's first image among all images."""
        self.first = first

    def __call__(self, name: str, replacement: str) -> Callable[[Tensor], Tensor]:
        """The function for a layer."""
        if replacement == ONE:
            return torch.ones_like
        if replacement == MEAN:
            return lambda output: _like(self.means[name], output)
        return lambda output: _like(self.banks[name][self._others(name, len(output))], output)

    def _others(self, name: str, number: int) -> Tensor:
        """Places in the bank of images that are not the images of the batch."""
        size = len(self.banks[name])
        generator = torch.Generator().manual_seed(self.seed + self.first)
        distance = torch.randint(1, size, (number,), generator=generator)
        return (self.first + torch.arange(number) + distance) % size


class Resumable:
    """A backbone that can go on from the input of one of its blocks, which saves the blocks before.

    Args:
        backbone: of this project.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.blocks = [
            (i, block)
            for i, name in enumerate(backbone.stage_names[: max(backbone.out_indices) + 1])
            for block in getattr(backbone, name)
        ]
        self.inputs: list[Tensor] = []

    def place(self, layer: GateLayer) -> int | None:
        """Number of the block that a layer is in; None if it is in no block."""
        return next((i for i, (_, block) in enumerate(self.blocks) if layer.source in block.modules()), None)

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """The whole backbone; keeps the input of every block."""
        self.inputs.clear()
        x = self.backbone.run_stem(x)
        return self._go_on(x, 0, keep=True)

    def run_from(self, block: int) -> tuple[Tensor, ...]:
        """What :meth:`run` returns for the same images, from the kept input of a block."""
        return self._go_on(self.inputs[block], block, keep=False)

    def _go_on(self, x: Tensor, first: int, keep: bool) -> tuple[Tensor, ...]:
        outs = {}
        for number, (stage, block) in enumerate(self.blocks):
            if number < first:
                if number + 1 < len(self.blocks) and self.blocks[number + 1][0] != stage:
                    outs[stage] = self.inputs[number + 1]  # what comes out of a stage goes into the next
                continue
            if keep:
                self.inputs.append(x)
            x = outs[stage] = block(x)
        return tuple(outs[stage] for stage in self.backbone.out_indices)


@contextmanager
def _in_place_of_forward(backbone: Backbone, forward: Callable) -> Iterator[None]:
    backbone.forward = forward
    try:
        yield
    finally:
        del backbone.forward


def cases(layers: Sequence[GateLayer], replacements: Sequence[str] = REPLACEMENTS) -> list[Case]:
    """All that is tried: every layer alone, and all layers from every one onwards."""
    return [
        Case(layer.name, replacement, onwards)
        for onwards in (False, True)
        for layer in layers
        for replacement in replacements
        if not (onwards and layer is layers[-1])  # which is the layer alone
    ]


class WorthStudy:
    """Evaluates a network with its own gates and with every replacement, batch by batch.

    Blocks before the first replaced gate are computed once a batch where the backbone is one of this project.

    Args:
        model: in evaluation mode.
        layers: of :func:`gate_layers`, in the order of the network.
        step: from a batch to the outputs of the model, such as ``model.test_step``.
        score: how outputs are judged.
        replacer: what stands in place of gates.
        replacements: some of ``REPLACEMENTS``.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[GateLayer],
        step: Step,
        score: Score,
        replacer: Replacer,
        replacements: Sequence[str] = REPLACEMENTS,
    ) -> None:
        self.layers, self.step, self.score, self.replacer = list(layers), step, score, replacer
        self.cases = cases(layers, replacements)
        self.own: list = []
        self.kept: dict[Case, list] = {case: [] for case in self.cases}
        backbone = getattr(model, 'backbone', model)
        shared = isinstance(backbone, Backbone) and type(backbone).forward is Backbone.forward
        self.resumable = Resumable(backbone) if shared else None

    @torch.no_grad()
    def add(self, batch: object, advance: Callable[[], object] = lambda: None) -> None:
        """Evaluate a batch in all ways.

        Args:
            batch: for ``step``, which must not change it.
            advance: called after each evaluation.
        """
        self.replacer.batch(len(self.own))
        if self.resumable:
            with _in_place_of_forward(self.resumable.backbone, self.resumable.run):
                self.own += self.score.keep(self.step(batch))
        else:
            self.own += self.score.keep(self.step(batch))
        advance()
        for case in self.cases:
            self.kept[case] += self.score.keep(self._run(batch, case))
            advance()

    def _run(self, batch: object, case: Case) -> object:
        names = [layer.name for layer in self.layers]
        first = names.index(case.layer)
        replaced = self.layers[first:] if case.onwards else [self.layers[first]]
        functions = {layer: self.replacer(layer.name, case.replacement) for layer in replaced}
        block = self.resumable.place(self.layers[first]) if self.resumable else None
        with ReplacedGates(functions):
            if block is None:
                return self.step(batch)
            with _in_place_of_forward(self.resumable.backbone, lambda x: self.resumable.run_from(block)):
                return self.step(batch)

    def state(self) -> tuple[list, dict[Case, list]]:
        """What this process has found."""
        return self.own, self.kept

    def merge(self, states: Sequence[tuple[list, dict[Case, list]]]) -> None:
        """Put together what all processes have found."""
        self.own = [entry for own, _ in states for entry in own]
        self.kept = {case: [entry for _, kept in states for entry in kept[case]] for case in self.cases}

    def results(self) -> tuple[float, dict[Case, Worth]]:
        """The score with the network's own gates, and what each replacement costs."""
        everything = np.arange(len(self.own))
        own = self.score.value(self.own, everything)
        found = {}
        for case, kept in self.kept.items():
            value = self.score.value(kept, everything)

            def loss(images: np.ndarray, kept: list = kept) -> float:
                return self.score.sign * (self.score.value(kept, images) - self.score.value(self.own, images))

            found[case] = Worth(value, self.score.sign * (value - own), *jackknife(loss, len(self.own)))
        return own, found


def jackknife(statistic: Callable[[np.ndarray], float], images: int, groups: int = JACKKNIFE_GROUPS) -> tuple:
    """95 % interval of a number that is computed from images, by leaving out groups of images.

    The delete-a-group jackknife: Kott, The delete-a-group jackknife, Journal of Official Statistics 17 (2001).

    Args:
        statistic: from the places of images to the number.
        images: how many there are.
        groups: how many times some are left out; at most ``images``.

    Returns:
        Lower and upper end; both infinite if there are less than two images.
    """
    groups = min(groups, images)
    if groups < 2:
        return -np.inf, np.inf
    group_of = np.random.default_rng(0).permutation(images) % groups
    whole = statistic(np.arange(images))
    without = np.array([statistic(np.flatnonzero(group_of != group)) for group in range(groups)])
    deviation = np.sqrt((groups - 1) / groups * ((without - whole) ** 2).sum())
    half = stats.t.ppf(0.975, groups - 1) * deviation
    return whole - half, whole + half


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
    layer: str,
    worth: Mapping[Case, Worth],
    score: Score,
    share: Share | None,
    finest: float = 0.0,
    *,
    tolerance: float,
    specific: float,
) -> Verdict:
    """What the numbers say of a layer.

    Args:
        layer: its name.
        worth: of :meth:`WorthStudy.results`.
        score: of the study.
        share: eta squared of the classes, see :func:`se_mm.analysis.gate_statistics.eta_squared`; None without classes.
        finest: the least difference that the images can show; with one above ``tolerance``, no gates are as good.
        tolerance: how much worse "as good" may be, in the unit of the score: the upper end of the interval counts.
        specific: eta squared, less what there is by chance, from which gates count as class-specific.
    """
    one, mean = (worth[Case(layer, replacement, False)] for replacement in (ONE, MEAN))
    role = 'undecided'
    if max(one.high, finest) <= tolerance:
        role = 'idle'
    elif max(mean.high, finest) <= tolerance:
        role = 'static'
    elif mean.low > 0:
        role = 'works'
    unit = f' {score.unit}' if score.unit else ''
    texts = [
        f'{words} the {score.name} is {abs(found.loss):.2f}{unit} {"worse" if found.loss > 0 else "better"} '
        f'(95 %: {found.low:+.2f} to {found.high:+.2f})'
        for words, found in (('without SE', one), ('with mean gates', mean))
    ]
    classes = None
    if share is not None:
        classes = 'class-specific' if share.value - share.by_chance >= specific else 'class-agnostic'
        texts.append(f'classes explain {share.value:.2f} of the variance ({share.by_chance:.2f} by chance)')
    sentence = '; '.join(texts)
    return Verdict(role, classes, f'{sentence[0].upper()}{sentence[1:]}.')

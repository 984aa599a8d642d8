"""The role of excitation in a network: what its gates do over a data set, and what they are worth."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from .gate_statistics import GateStatistics
from .gate_worth import REPLACEMENTS, Bank, Case, Replacer, Verdict, Worth, WorthStudy, judge
from .gates import GateRecorder, gate_layers

if TYPE_CHECKING:  # which needs pycocotools
    from .scores import Score

Step = Callable[[object], object]


def measure_gates(
    model: nn.Module,
    batches: Iterable,
    *,
    groupings: Mapping[str, Sequence[str]] | None = None,
    members: Callable[[object], Sequence[Iterable[int]]] | None = None,
    step: Step | None = None,
    thresholds: tuple[float, float] = (0.1, 0.9),
    names: Sequence[str] | None = None,
    bank: Bank | None = None,
    into: GateStatistics | None = None,
) -> GateStatistics:
    """Run a model over images and gather what its gates do.

    >>> statistics = measure_gates(model, loader, groupings={'class': ['cat', 'dog']})
    >>> print(statistics.profile()[0])

    Args:
        model: with SE layers, of any package; runs in evaluation mode, and gets its mode back.
        batches: by default pairs of images (N, 3, H, W) and numbers of classes (N,).
        groupings: of :class:`GateStatistics`.
        members: from a batch to the groups of each image, see :meth:`GateStatistics.add`. By default the second part
            of a batch has the number of each image's class, from 0; without ``groupings`` images have no groups.
        step: from a batch to the model's outputs. By default the model is called with the first part of the batch, on
            the model's device.
        thresholds: gates below the first count as low, gates above the second as high.
        names: of :func:`gate_layers`.
        bank: gets gates of the first images.
        into: statistics of earlier images, which grow batch by batch; made from ``groupings`` if None.

    Raises:
        InputError: the model has no SE layer.
    """
    layers = gate_layers(model, names)
    if into is None:
        into = GateStatistics(groupings, thresholds, {layer.name: layer.path for layer in layers})
    if step is None:
        device = next(model.parameters()).device

        def step(batch: Sequence) -> object:
            return model(batch[0].to(device))

    if members is None:

        def members(batch: Sequence) -> list[tuple[int, ...]] | None:
            return [(int(label) + 1,) for label in batch[1]] if into.groupings else None

    mode = model.training
    model.eval()
    try:
        with GateRecorder(model, names) as recorder, torch.no_grad():
            for batch in batches:
                step(batch)
                gates = recorder.take()
                into.add(gates, members(batch))
                if bank:
                    bank.add(gates)
    finally:
        model.train(mode)
    return into


@dataclass
class Analysis:
    """What is known of a network's gates.

    Attributes:
        name: of the network.
        statistics: of its gates.
        score: by which it was judged, None if it was not.
        own: value of the score with the network's own gates.
        worth: what each replacement costs.
        images: number of images of the evaluations.
        finest: the least difference that so many images can show, in the unit of the score.
        verdicts: by layer.
    """

    name: str
    statistics: GateStatistics
    score: Score | None = None
    own: float | None = None
    worth: dict[Case, Worth] = field(default_factory=dict)
    images: int = 0
    finest: float = 0.0
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def judge(self, tolerance: float, specific: float) -> None:
        """Set :attr:`verdicts` by thresholds, see :func:`se_mm.analysis.gate_worth.judge`."""
        for row in self.statistics.profile() if self.worth else ():
            share = row.eta_squared.get('class')
            self.verdicts[row.name] = judge(
                row.name, self.worth, self.score, share, self.finest, tolerance=tolerance, specific=specific
            )

    def rows(self) -> list[dict]:
        """A dict a layer, of plain values: its profile, its verdict and what its gates are worth."""
        rows = []
        for profile in self.statistics.profile():
            row = asdict(profile)
            for grouping, share in row.pop('eta_squared').items():
                key = f'eta_squared_{grouping.replace(" ", "_")}'
                row[key], row[f'{key}_by_chance'] = (share['value'], share['by_chance']) if share else (None, None)
            if verdict := self.verdicts.get(profile.name):
                row.update(role=verdict.role, classes=verdict.classes)
            for replacement in REPLACEMENTS:
                if worth := self.worth.get(Case(profile.name, replacement, False)):
                    row.update({f'{replacement}_{key}': value for key, value in worth._asdict().items()})
            rows.append(row)
        return rows

    def table(self) -> str:
        """:meth:`rows` as CSV."""
        rows, text = self.rows(), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def numbers(self) -> dict:
        """Everything but the statistics of single channels, ready for JSON."""
        worth = [case._asdict() | found._asdict() for case, found in self.worth.items()]
        return dict(
            network=self.name,
            images=self.statistics.images,
            layers=self.rows(),
            score=self.score and self.score.name,
            value=self.own,
            evaluated_images=self.images,
            replacements=worth,
            verdicts={name: verdict._asdict() for name, verdict in self.verdicts.items()},
        )


def study_worth(
    analysis: Analysis,
    model: nn.Module,
    batches: Iterable,
    step: Step,
    score: Score,
    bank: Bank,
    *,
    seed: int = 0,
    gather: Callable[[object], list] = lambda state: [state],
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Evaluate a network with other gates in place of its own.

    Args:
        analysis: with statistics of the same data; gets the score, its values and what replacements cost.
        model: of the analysis.
        batches: for ``step``.
        step: from a batch to the outputs that the score looks at.
        score: see :class:`se_mm.analysis.scores.Score`.
        bank: gates of at least two images.
        seed: of the shuffling.
        gather: collects an object from all processes.
        advance: called after every evaluation of a batch.
    """
    layers = [layer for layer in gate_layers(model) if layer.name in analysis.statistics.layers]
    means = {name: moments.sum[0] / moments.count[0] for name, moments in analysis.statistics.layers.items()}
    study = WorthStudy(model, layers, step, score, Replacer(means, bank, seed))
    mode = model.training
    model.eval()
    try:
        for batch in batches:
            study.add(batch, advance)
    finally:
        model.train(mode)
    study.merge(gather(study.state()))
    analysis.score, analysis.images, analysis.finest = score, len(study.own), score.finest(study.own)
    analysis.own, analysis.worth = study.results()

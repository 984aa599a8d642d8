"""The role of excitation in a network: what its gates do over a data set, and what they are worth."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from se_mm.utils import InputError

from .gate_bank import REPLACEMENTS, Bank, Replacer
from .gate_statistics import GateStatistics
from .gate_worth import Case, Step, Verdict, WorthStudy, judge
from .gates import Batch, GateRecorder, evaluating, gate_layers, weights_digest

if TYPE_CHECKING:  # which needs pycocotools
    from .scores import Score, Worth


def labelled_batches(loader: Iterable, statistics: GateStatistics) -> Iterator[Batch]:
    """Batches of pairs of images (N, 3, H, W) and numbers of classes (N,).

    Args:
        loader: of pairs.
        statistics: with the grouping 'class' alone, or without groupings.

    Raises:
        InputError: a number is not that of a class.
    """
    first = 0
    for images, labels in loader:
        members = None
        if statistics.groupings:
            classes = statistics.groupings['class'].groups
            members = [(int(label) + 1,) for label in labels]
            if wrong := [group - 1 for (group,) in members if not 0 < group <= len(classes)]:
                raise InputError(f'an image has class {wrong[0]}: classes have the numbers 0 to {len(classes) - 1}')
        yield Batch(images, members, range(first, first + len(images)))
        first += len(images)


def measure_gates(
    model: nn.Module,
    loader: Iterable,
    *,
    classes: Sequence[str] | None = None,
    thresholds: tuple[float, float] = (0.1, 0.9),
    names: Sequence[str] | None = None,
) -> GateStatistics:
    """Run a model over images and gather what its gates do.

    >>> statistics = measure_gates(model, loader, classes=['cat', 'dog'])
    >>> print(statistics.profile()[0])

    Args:
        model: with SE layers, of any package; runs in evaluation mode on its device, and gets its mode back.
        loader: pairs of images (N, 3, H, W) and numbers of classes (N,), from 0.
        classes: names; without names, classes are not told apart.
        thresholds: gates below the first count as low, gates above the second as high.
        names: of :func:`gate_layers`.

    Raises:
        InputError: the model has no SE layer, an image has a class without a name, or gates are NaN.
    """
    paths = {layer.name: layer.path for layer in gate_layers(model, names)}
    statistics = GateStatistics({'class': classes} if classes else None, thresholds, paths)
    device = next(model.parameters()).device
    step = lambda images: model(images.to(device))  # noqa: E731
    gather_gates(statistics, model, labelled_batches(loader, statistics), step)
    return statistics


def gather_gates(
    statistics: GateStatistics, model: nn.Module, batches: Iterable[Batch], step: Step, bank: Bank | None = None
) -> None:
    """Run a model over images and add its gates to statistics, batch by batch.

    Args:
        statistics: with paths of the layers to look at.
        model: with these layers; runs in evaluation mode, and gets its mode back.
        batches: with members in the groups of ``statistics``.
        step: from the inputs of a batch to the model's outputs.
        bank: keeps gates of the images that it is for.

    Raises:
        InputError: gates are NaN.
    """
    statistics.weights = weights_digest(model)
    with evaluating(model), GateRecorder(model, list(statistics.paths)) as recorder, torch.no_grad():
        for batch in batches:
            step(batch.inputs)
            gates = recorder.take()
            statistics.add(gates, batch.members)
            if bank is not None:
                bank.add(gates, batch.numbers)
    if lost := [name for name, moments in statistics.layers.items() if not moments.sum[0].isfinite().all()]:
        raise InputError(
            f'gates of {lost[0]} are not finite: look for NaN and infinite values in the weights and in the images'
        )


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
        verdicts: by layer.
        remarks: what is missing or doubtful, and why.
    """

    name: str
    statistics: GateStatistics
    score: Score | None = None
    own: float | None = None
    worth: dict[Case, Worth] = field(default_factory=dict)
    images: int = 0
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def take(self, study: WorthStudy, advance: Callable[[], object] = lambda: None) -> None:
        """Set score, its value and what replacements cost.

        Args:
            study: that has run over at least one image.
            advance: called after each replacement.
        """
        self.score, self.images, self.own = study.score, len(study.own), study.score.value(study.own)
        self.worth = study.results(advance)

    def judge(self, tolerance: float, specific: float) -> None:
        """Set :attr:`verdicts` by thresholds, see :func:`se_mm.analysis.gate_worth.judge`."""
        for row in self.statistics.profile() if self.worth else ():
            share = row.eta_squared.get('class')
            self.verdicts[row.name] = judge(
                row.name, self.worth, self.score, share, tolerance=tolerance, specific=specific
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
            weights_sha256=self.statistics.weights,
            images=self.statistics.images,
            layers=self.rows(),
            score=self.score and self.score.name,
            value=self.own,
            evaluated_images=self.images,
            replacements=worth,
            verdicts={name: verdict._asdict() for name, verdict in self.verdicts.items()},
            remarks=self.remarks,
        )


def worth_study(
    analysis: Analysis, model: nn.Module, step: Step, score: Score, bank: Bank, seed: int = 0
) -> WorthStudy:
    """A study of what gates are worth, ready to run.

    Args:
        analysis: with statistics of the same data.
        model: of the analysis.
        step: from the inputs of a batch to the outputs that the score looks at.
        score: see :class:`se_mm.analysis.scores.Score`.
        bank: gates of at least two images.
        seed: of the shuffling.
    """
    layers = [layer for layer in gate_layers(model) if layer.name in analysis.statistics.layers]
    means = {name: moments.sum[0] / moments.count[0] for name, moments in analysis.statistics.layers.items()}
    return WorthStudy(model, layers, step, score, Replacer(means, bank, seed))

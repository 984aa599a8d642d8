"""The page of studies: tables, curves and the sentences that the stored results support."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from se_mm.analysis.comparison import DETECTION, RECALL, Difference, difference, measured_values, signed, spread
from se_mm.analysis.curves import draw_curves, mean_curve
from se_mm.analysis.runs import Axis
from se_mm.utils import InputError, written_whole

from .studies import ROOT, Study

LABELS = {'top1': 'top-1 error', 'top5': 'top-5 error'} | {name: name for name in (*DETECTION, *RECALL)}


@dataclass(frozen=True)
class Network:
    """The stored results of a config.

    Attributes:
        config: file of the config.
        results: contents of the files that :func:`~se_mm.engine.studies.write_result` wrote.
    """

    config: Path
    results: list[dict]

    @property
    def name(self) -> str:
        return self.config.stem

    @cached_property
    def values(self) -> dict[str, list[float]]:
        """Metrics in percent, of each run."""
        return measured_values(
            [dict(result, checkpoint=dict(sha256=result['checkpoint_sha256'])) for result in self.results]
        )

    @cached_property
    def curves(self) -> dict[Axis, list[dict[float, float]]]:
        """Curves of the runs, values by position."""
        curves: dict[Axis, list[dict[float, float]]] = {}
        for result in self.results:
            for quantity, curve in result['curves'].items():
                curves.setdefault(Axis(quantity, curve['unit']), []).append(dict(curve['points']))
        return curves

    @property
    def seeds(self) -> list[int]:
        return sorted(result['seed'] for result in self.results)

    @property
    def losses(self) -> list[float]:
        """Training loss at the end of each run that logged its loss."""
        curves = [result['curves'].get('training loss', {}).get('points') for result in self.results]
        return [points[-1][1] for points in curves if points]

    def cell(self, metric: str) -> str:
        return shown(self.values[metric])


class Comparison(NamedTuple):
    """Two networks and the differences of their means, by metric."""

    baseline: Network
    network: Network
    differences: dict[str, Difference]


@dataclass(frozen=True)
class StudyResults:
    """What is stored of a study.

    Attributes:
        study: the study.
        networks: of which there are results.
        folder: of the results.
    """

    study: Study
    networks: list[Network]
    folder: Path

    @property
    def planned(self) -> int:
        """Number of runs of the study."""
        return len(self.study.runs())

    @cached_property
    def pictures(self) -> dict[Axis, Path]:
        """Where :func:`draw` puts the curves."""
        axes = list(dict.fromkeys(axis for network in self.networks for axis in network.curves))
        names = [axis.quantity.partition(',')[0].replace(' ', '_') for axis in axes]
        names = [name if names.count(name) == 1 else f'{name}_by_{axis.unit}' for axis, name in zip(axes, names)]
        return {axis: self.folder / f'{name}.svg' for axis, name in zip(axes, names)}

    @property
    def metrics(self) -> list[str]:
        """Metrics that every network has, the most important first."""
        return [name for name in LABELS if all(name in network.values for network in self.networks)]

    @property
    def results(self) -> list[dict]:
        return [result for network in self.networks for result in network.results]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Of the networks that have results."""
        networks = {network.name: network for network in self.networks}
        pairs = [[networks.get(name) for name in pair] for pair in self.study.comparisons]
        return [
            Comparison(
                baseline,
                network,
                {name: difference(name, network.values[name], baseline.values[name]) for name in self.metrics},
            )
            for baseline, network in pairs
            if baseline and network
        ]

    def sentences(self) -> list[str]:
        """What the numbers say of the most important metric."""
        name = self.metrics[0]
        return [sentence(pair, name) for pair in self.comparisons]

    def numbers(self) -> dict:
        """Everything that is on the page, ready for JSON."""
        return dict(
            study=self.study.name,
            runs_planned=self.planned,
            networks={n.name: dict(seeds=n.seeds, values=n.values, training_loss=n.losses) for n in self.networks},
            comparisons=[
                dict(
                    baseline=pair.baseline.name,
                    network=pair.network.name,
                    differences={name: found._asdict() for name, found in pair.differences.items()},
                )
                for pair in self.comparisons
            ],
            sentences=self.sentences(),
        )


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation as text."""
    if not values:
        return '-'
    mean, deviation = spread(values)
    return f'{mean:.{digits}f}' if deviation is None else f'{mean:.{digits}f} ± {deviation:.{digits}f}'


def sentence(pair: Comparison, metric: str) -> str:
    """What the difference of a metric and its interval say, and no more."""
    label, found = LABELS[metric], pair.differences[metric]
    baseline, network = pair.baseline.name, pair.network.name
    names = f'`{network}` and `{baseline}`'
    if found.low is None:
        return f'{names}: a difference of {signed(found.value, 2)} points in {label}; too few runs for an interval.'
    interval = f'(95 % interval: {signed(found.low, 2)} to {signed(found.high, 2)})'
    if found.verdict == 'inside the noise':
        return f'{names}: the difference of {signed(found.value, 2)} points in {label} is within the noise {interval}.'
    verb = 'raises' if found.value > 0 else 'lowers'
    return f'`{network}` {verb} the {label} of `{baseline}` by {abs(found.value):.2f} points {interval}.'


def read_results(study: Study, folder: Path) -> StudyResults | None:
    """The stored results of a study, None if there are none.

    Raises:
        InputError: a result is of another version of its config, or the configs have no metric in common.
    """
    finished = [run for run in study.runs() if run.is_finished(folder)]
    stored = [(run, json.loads(run.result(folder).read_text())) for run in finished]
    networks = [
        Network(config, results)
        for config in study.configs()
        if (results := [result for run, result in stored if run.config == config])
    ]
    if not networks:
        return None
    results = StudyResults(study, networks, folder / study.name)
    if not results.metrics:
        raise InputError(f'{results.folder}: the configs have no metric in common')
    return results


def draw(results: StudyResults) -> None:
    """Draw all curves, with bands where there are several runs, into the folder of the results."""
    numbers = {network.name: number for number, network in enumerate(results.networks)}
    for axis, path in results.pictures.items():
        curves = {n.name: mean_curve(n.curves[axis]) for n in results.networks if axis in n.curves}
        with written_whole(path) as partial:
            partial.write_text(draw_curves(axis, curves, numbers))


def render(studies: list[StudyResults], page: Path, command: str) -> str:
    """The page as Markdown.

    Args:
        studies: what is shown.
        page: where the text will be written; links are relative to its folder.
        command: what writes the page.

    Raises:
        InputError: jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise InputError('the page needs jinja2: pip install jinja2') from error
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(
        shown=shown, signed=signed, link=lambda path: os.path.relpath(path, page.resolve().parent)
    )
    template = environment.from_string(Path(__file__).with_name('study_page.md.j2').read_text())
    return template.render(studies=studies, labels=LABELS, command=command, root=ROOT)

"""A page that shows runs side by side: numbers, learning curves, validation images, how to run them again.

The page is one HTML file that needs neither a server nor a network: its pictures are inside.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader

from se_mm.utils import InputError
from se_mm.utils.config import load_config

from .comparison import DETECTION, Difference, differences, measured_values, signed, spread
from .complexity import complexity
from .curves import COLOURS, draw_curves, learning_curves
from .examples import SCORE, Answers, Detections, answers, data_uri, detections, validation_data
from .runs import Run

KINDS = dict(
    mmdet=('detectors', {name: name for name in DETECTION}),
    mmpretrain=('classifiers', dict(top1='top-1 error', top5='top-5 error')),
)


@dataclass
class Network:
    """A config with its runs, which differ by seed.

    Attributes:
        name: of the config.
        number: which gives the colour.
        runs: at least one.
        counts: of :func:`complexity`, None if the model cannot be counted.
        values: AP or error in percent of each evaluated run.
        differences: to the first network of this kind.
    """

    name: str
    number: int
    runs: list[Run]
    counts: dict | None = None
    values: dict[str, list[float]] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)

    @property
    def colour(self) -> str:
        """Colour in curves and tables."""
        return COLOURS[self.number % len(COLOURS)]

    @property
    def evaluated(self) -> list[Run]:
        """The runs that have an evaluation."""
        return [run for run in self.runs if run.evaluation]

    @property
    def seconds(self) -> list[float]:
        """Training time of each run that logged it."""
        return [run.seconds for run in self.runs if run.seconds]

    def numbers(self) -> dict:
        """Everything that is counted and measured, ready for JSON."""
        return dict(
            config=self.name,
            work_dirs=[str(run.folder) for run in self.runs],
            **(self.counts or {}),
            measured={name: spread(values).mean for name, values in self.values.items()},
            deviation={name: spread(values).deviation for name, values in self.values.items()},
            values=self.values,
            difference={name: d._asdict() for name, d in self.differences.items()},
            training_seconds=self.seconds,
        )


class Cell(NamedTuple):
    """A cell of a table: a number and what it differs by from the first network's."""

    text: str
    difference: Difference | None = None


@dataclass
class Kind:
    """The detectors or the classifiers on a page.

    Attributes:
        title: what they are.
        networks: the first is the baseline.
        metrics: names and what the page calls them.
        rows: of the table, labels and a cell for each network.
        detections: of detectors.
        answers: of classifiers.
        divided: images on which the first answers of classifiers differ.
        divided_in_all: number of all such images.
        remarks: what is missing, and why.
    """

    title: str
    networks: list[Network]
    metrics: dict[str, str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    detections: list[Detections] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    divided: list[Answers] = field(default_factory=list)
    divided_in_all: int = 0
    remarks: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """What the first metric says of each network beside the baseline."""
        metric, label = next(iter(self.metrics.items()))
        baseline, *others = self.networks
        found = []
        for network in others:
            if (difference := network.differences.get(metric)) is not None:
                points = f'{abs(difference.value):.1f}'
                more = f'{points} points {"higher" if difference.value > 0 else "lower"} than'
                relation = 'equal to' if points == '0.0' else more
                once = ' in one run each' if len(network.evaluated) == len(baseline.evaluated) == 1 else ''
                verdict = f', which is {difference.verdict}' if difference.verdict else ''
                found.append(f'The {label} of {network.name} is {relation} that of {baseline.name}{once}{verdict}.')
        return found

    @property
    def categories(self) -> dict[str, str]:
        """Colour of each category that has a box on the page."""
        return {box.category: box.colour for example in self.detections for _, boxes in example.boxes for box in boxes}


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the name of their config, in the order of the first of each.

    Raises:
        InputError: configs of one name have different models.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    for name, (first, *others) in groups.items():
        for other in others:
            if other.cfg.model != first.cfg.model:
                raise InputError(
                    f'{first.folder} and {other.folder} are named {name}, but their models differ: '
                    'give the configs different names'
                )
    return groups


def compare_runs(runs: Sequence[Run], advance: Callable[[str], None] = lambda text: None) -> list[Kind]:
    """Count, compare and picture the networks of runs, detectors and classifiers apart.

    Args:
        runs: in the order in which the page shows them.
        advance: called with a word for what comes next, once for each network and once for each kind.

    Raises:
        InputError: a config is none of a detector or classifier, or runs of one name do not belong together.
    """
    groups: dict[str, dict[str, list[Run]]] = {scope: {} for scope in KINDS}
    for name, group in group_runs(runs).items():
        scope = group[0].cfg.get('default_scope')
        if scope not in KINDS:
            raise InputError(f'{group[0].folder}: default_scope={scope!r}, a page shows {" and ".join(KINDS)} networks')
        groups[scope][name] = group
    numbers, kinds = count(), []
    for scope, (title, metrics) in KINDS.items():
        networks = [Network(name, next(numbers), group) for name, group in groups[scope].items()]
        if networks:
            kinds.append(Kind(title, networks, metrics))
    for kind in kinds:
        for network in kind.networks:
            advance(network.name)
            _count(kind, network)
        kind.rows = _rows(kind)
        advance(f'images for the {kind.title}')
        _add_examples(kind)
    return kinds


def _count(kind: Kind, network: Network) -> None:
    try:
        network.counts = complexity(network.runs[0].cfg)
    except InputError as error:
        kind.remarks.append(f'{network.name} is not counted: {error}')
    network.values = measured_values([run.evaluation for run in network.evaluated])
    missing = [str(run.folder) for run in network.runs if not run.evaluation]
    if missing:
        kind.remarks.append(f'No metrics.json of {", ".join(missing)}: tools/test.py writes it.')
    baseline = kind.networks[0]
    network.differences = differences(network.values, baseline.values) if network is not baseline else {}


def _rows(kind: Kind) -> list[tuple[str, list[Cell]]]:
    networks, counted = kind.networks, [network for network in kind.networks if network.counts]
    rows = [('parameters, M', [Cell(f'{n.counts["params"] / 1e6:.2f}' if n.counts else '-') for n in networks])]
    shapes = {'x'.join(map(str, network.counts['shape'])) for network in counted}
    label = f'GFLOPs at {", ".join(sorted(shapes))}' if shapes else 'GFLOPs'
    rows.append((label, [Cell(f'{n.counts["gflops"]:.2f}' if n.counts else '-') for n in networks]))
    for metric, label in kind.metrics.items():
        if any(metric in network.values for network in networks):
            cells = [
                Cell(str(spread(n.values[metric])), n.differences.get(metric)) if metric in n.values else Cell('-')
                for n in networks
            ]
            rows.append((f'{label}, %', cells))
    if any(network.seconds for network in networks):
        minutes = [[seconds / 60 for seconds in network.seconds] for network in networks]
        rows.append(('training, min', [Cell(str(spread(m)) if m else '-') for m in minutes]))
    if any(len(network.runs) > 1 for network in networks):
        rows.append(('runs', [Cell(str(len(network.runs))) for network in networks]))
    return rows


def _add_examples(kind: Kind) -> None:
    runs = {network.name: network.evaluated[0] for network in kind.networks if network.evaluated}
    first = next(iter(runs.values()), None)
    same = {name: run for name, run in runs.items() if validation_data(run) == validation_data(first)}
    if len(same) < len(runs):
        other = ', '.join(name for name in runs if name not in same)
        kind.remarks.append(f'Evaluated on other data than {first.name}: {other}. Their numbers do not compare.')
    if not same:
        return
    try:
        if 'AP' in kind.metrics:
            kind.detections = detections(same)
        else:
            kind.answers, kind.divided, kind.divided_in_all = answers(same)
    except InputError as error:
        kind.remarks.append(f'No images: {error}.')


def render(kinds: Sequence[Kind], command: str) -> str:
    """The page as HTML.

    Args:
        kinds: of :func:`compare_runs`.
        command: the command that made the page.
    """
    networks = [network for kind in kinds for network in kind.networks]
    numbers = {network.name: network.number for network in networks}
    pictures = [
        (axis, data_uri(draw_curves(axis, curves, numbers).encode(), 'image/svg+xml'), curves)
        for axis, curves in learning_curves({network.name: network.runs for network in networks}).items()
    ]
    environment = Environment(
        loader=PackageLoader('se_mm.analysis', '.'), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(shown=_shown, signed=signed)
    template = environment.get_template('page.html.j2')
    return template.render(
        kinds=kinds,
        networks=networks,
        by_name={network.name: network for network in networks},
        pictures=pictures,
        several=any(len(network.runs) > 1 for network in networks),
        score=SCORE,
        versions=_versions(networks),
        commands=[(network, _commands(network.runs[0])) for network in networks],
        command=command,
        date=datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z'),
    )


def _versions(networks: Sequence[Network]) -> dict[str, str]:
    """Versions of packages in the evaluations; several of one package are joined."""
    found: dict[str, dict[str, None]] = {}
    for network in networks:
        for run in network.evaluated:
            for package, version in (run.evaluation.get('versions') or {}).items():
                found.setdefault(package, {})[version] = None
    return {package: ', '.join(versions) for package, versions in found.items()}


def _shown(path: Path | str) -> str:
    """A path, relative to the current folder if it lies there."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _start_of(run: Run) -> dict:
    """Options that let a training begin where the run began, if the run has been resumed since."""
    if not run.cfg.get('resume'):
        return {}
    trained = sorted(path.with_name('config.py') for path in run.folder.glob('*/vis_data/scalars.json'))
    configs = map(load_config, filter(Path.is_file, trained))
    return dict(resume=False, load_from=next((cfg.get('load_from') for cfg in configs if not cfg.get('resume')), None))


def _commands(run: Run) -> list[str]:
    """Commands that train and evaluate again, into another work dir."""
    evaluation, folder, lines = run.evaluation or {}, f'work_dirs/again/{run.name}', []
    config = _shown(evaluation.get('config') or run.config)
    if run.training:  # with what the command line changed
        lines = [['mkdir', '-p', folder], ['cp', _shown(run.config), f'{folder}.py']]
        config = f'{folder}.py'
    processes = evaluation.get('processes', 1)
    if processes == 1:
        train, test, number = ['python', 'tools/train.py'], ['python', 'tools/test.py'], []
    else:
        train, test, number = ['tools/dist_train.sh'], ['tools/dist_test.sh'], [str(processes)]
    if run.training:
        seed = (run.cfg.get('randomness') or {}).get('seed')
        changed = _start_of(run) | ({} if seed is None else {'randomness.seed': seed})
        options = ['--cfg-options', *(f'{key}={value}' for key, value in changed.items())] if changed else []
        lines.append([*train, config, *number, '--work-dir', folder, *options])
    checkpoint = (evaluation.get('checkpoint') or {}).get('path')
    if checkpoint:
        checkpoint = f'{folder}/{Path(checkpoint).name}' if run.training else _shown(checkpoint)
        lines.append([*test, config, checkpoint, *number, '--work-dir', folder])
    return [shlex.join(line) for line in lines]

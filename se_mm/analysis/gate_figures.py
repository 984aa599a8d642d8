"""Pictures of gates, as figures 6 and 7 of Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .curves import COLOURS, LINES
from .gate_bank import REPLACEMENTS
from .gate_statistics import GateStatistics
from .gate_worth import Case

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from .scores import Worth

PAPER = ('SE_2_3', 'SE_3_4', 'SE_4_6', 'SE_5_1', 'SE_5_2', 'SE_5_3')  # panels of figure 6
PAPER_NAME = re.compile(r'SE_(\d+)_(\d+)')
*CLASS_COLOURS, BLACK = COLOURS  # black is for all images
COLUMNS = 3
PANEL = 4.0  # width in inches
PROFILE_TICKS, WORTH_TICKS = 32, 64  # names of layers that fit under a panel
PROFILE = (
    ('mean', 'mean gate'),
    ('from_mean', 'distance from its own mean'),
    ('from_identity', 'distance from one'),
    ('eta', 'share of variance\nbetween classes'),
    ('high', 'share of gates\nabove {high:g}'),
    ('low', 'share of gates\nbelow {low:g}'),
)


def panels(names: Sequence[str]) -> list[str]:
    """The six layers of the paper; of another network the last layer of every stage and the others of the last stage.

    Args:
        names: of all SE layers, in the order of the network.
    """
    if all(name in names for name in PAPER):
        return list(PAPER)
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(name.rpartition('_')[0] if name.startswith('SE_') else name, []).append(name)
    *early, last = stages.values()
    chosen = [stage[-1] for stage in early] + last
    return chosen if len(chosen) <= 12 else [chosen[i] for i in np.linspace(0, len(chosen) - 1, 12).round().astype(int)]


def in_depth_order(networks: Iterable[Sequence[str]]) -> list[str]:
    """The layers of all networks on one axis, each once.

    Names such as SE_2_3 are sorted by stage and block. Other names keep the order of their network; a layer that only a
    later network has comes after the layer that it follows there.

    Args:
        networks: names of the layers of each network, in its order.
    """
    merged: list[str] = []
    for names in networks:
        place = 0 if any(name in merged for name in names) else len(merged)
        for name in names:
            if name in merged:
                place = merged.index(name) + 1
                continue
            if depth := _depth(name):
                place = max([place, *(i + 1 for i, other in enumerate(merged) if () < _depth(other) < depth)])
                place = min([place, *(i for i, other in enumerate(merged) if _depth(other) > depth)])
            merged.insert(place, name)
            place += 1
    return merged


def _depth(name: str) -> tuple[int, ...]:
    """Stage and block, nothing for a layer that has another name."""
    found = PAPER_NAME.fullmatch(name)
    return tuple(map(int, found.groups())) if found else ()


def sampled(channels: int, number: int) -> np.ndarray:
    """Numbers of evenly spaced channels."""
    return np.linspace(0, channels - 1, min(number, channels)).round().astype(int)


def _text(text: str, inches: float) -> str:
    """A name for matplotlib, which would take dollar signs as marks of formulas; long names are broken."""
    characters = int(inches / 0.08)
    return (text if len(text) <= characters else fill(text, characters)).replace('$', r'\$')


def _grid(number: int, height: float) -> tuple[Figure, list[Axes]]:
    rows, columns = ceil(number / COLUMNS), min(number, COLUMNS)
    figure = Figure(figsize=(PANEL * columns, height * rows), layout='constrained')
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[number:]:
        axis.set_visible(False)
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
    return figure, axes[:number]


def _legend(figure: Figure, labels: Sequence[str], handles: Sequence[Artist]) -> None:
    """Below all panels, in as many columns as fit."""
    width = figure.get_figwidth()
    labels = [_text(label, width - 0.8) for label in labels]
    longest = max(len(line) for label in labels for line in label.split('\n'))
    columns = min(len(labels), max(1, int(width / (0.08 * longest + 0.6))))
    lines = ceil(len(labels) / columns) * max(1 + label.count('\n') for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.2 * lines + 0.2)
    # matplotlib leaves out labels that begin with an underscore, so the labels are set afterwards
    places = dict(loc='outside lower center', ncols=columns, frameon=False, fontsize='small')
    legend = figure.legend(handles, ['-'] * len(labels), **places)
    for text, label in zip(legend.get_texts(), labels):
        text.set_text(label)


def _layer_ticks(axis: Axes, names: Sequence[str], most: int) -> None:
    """Names of layers below an axis, at most so many."""
    places = range(0, len(names), ceil(len(names) / most))
    axis.set_xticks(places, [names[place].replace('$', r'\$') for place in places], rotation=90, fontsize='x-small')


def _room(names: Iterable[str]) -> float:
    """Height in inches that names of layers need."""
    return 0.06 * max(map(len, names), default=0)


def _reference_lines(axis: Axes) -> None:
    """Closed and open gates. The limits of the axis follow the data, and include these lines."""
    for gate in (0, 1):
        axis.axhline(gate, color='#bbbbbb', lw=0.6, zorder=0)


def _draw_channels(
    statistics: GateStatistics, layers: Sequence[str], classes: Sequence[str], channels: int, *, spread: bool
) -> Figure:
    """Gates over channels, one panel a layer: of all images beside the classes, or with the spread within a class."""
    groups = [(label, statistics.group('class', label)) for label in classes]
    if not spread:
        groups.append(('all images', 0))
    figure, axes = _grid(len(layers), 2.6)
    for axis, name in zip(axes, layers):
        moments = statistics.layers[name]
        mean, deviation = moments.mean, np.sqrt(moments.variance)
        places = sampled(mean.shape[1], channels)
        _reference_lines(axis)
        handles = []
        for i, (_, group) in enumerate(groups):
            colour = CLASS_COLOURS[i % len(CLASS_COLOURS)] if group else BLACK
            style = LINES[i // len(CLASS_COLOURS) % len(LINES)] if group else '-'
            middle, width = mean[group, places], deviation[group, places]
            handles += axis.plot(places, middle, style, color=colour, lw=1.2 if group else 1.8)
            if spread:
                axis.fill_between(places, middle - width, middle + width, color=colour, alpha=0.2, lw=0)
        axis.set_title(_text(name, PANEL - 0.6), fontsize='medium')
        axis.set_xlabel('channel')
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[::COLUMNS]:
        axis.set_ylabel('gate, mean ± deviation' if spread else 'mean gate')
    _legend(figure, [label for label, _ in groups], handles)
    return figure


def draw_classes(statistics: GateStatistics, layers: Sequence[str], classes: Sequence[str], channels: int) -> Figure:
    """Figure 6: mean gates of some classes and of all images, one panel a layer, over evenly spaced channels.

    Raises:
        InputError: a class does not exist or has no images.
    """
    return _draw_channels(statistics, layers, classes, channels, spread=False)


def draw_spread(statistics: GateStatistics, layers: Sequence[str], classes: Sequence[str], channels: int) -> Figure:
    """Figure 7: mean and standard deviation of gates over the images of some classes, over evenly spaced channels.

    Raises:
        InputError: a class does not exist or has no images.
    """
    return _draw_channels(statistics, layers, classes, channels, spread=True)


def draw_profile(networks: Mapping[str, GateStatistics]) -> Figure:
    """The profile over depth of one network, or of several on common axes."""
    low, high = next(iter(networks.values())).thresholds
    with_classes = any('class' in statistics.groupings for statistics in networks.values())
    rows = [(key, label) for key, label in PROFILE if key != 'eta' or with_classes]
    names = in_depth_order(list(statistics.layers) for statistics in networks.values())
    figure, axes = _grid(len(rows), 2.1 + _room(names))
    handles = []
    for i, statistics in enumerate(networks.values()):
        profile = sorted(statistics.profile(), key=lambda row: names.index(row.name))
        positions = [names.index(row.name) for row in profile]
        colour = COLOURS[i % len(COLOURS)]
        for axis, (key, label) in zip(axes, rows):
            if key == 'eta':
                shares = [row.eta_squared.get('class') for row in profile]
                values = [np.nan if share is None else share.value for share in shares]
                chance = [np.nan if share is None else share.by_chance for share in shares]
                axis.plot(positions, chance, ':', color=colour, lw=1)
            else:
                values = [getattr(row, key) for row in profile]
            (line,) = axis.plot(positions, values, 'o-', ms=3.5, lw=1.4, color=colour)
            axis.set_title(label.format(low=low, high=high), fontsize='medium')
        handles.append(line)
    for axis in axes:
        axis.axhline(0, color='#bbbbbb', lw=0.6, zorder=0)
        _layer_ticks(axis, names, PROFILE_TICKS)
    if len(networks) > 1:
        _legend(figure, list(networks), handles)
    return figure


def draw_worth(worth: Mapping[Case, Worth], score: str, unit: str) -> Figure:
    """What replacing gates costs: one layer at a time, and a layer with all later layers of the picture."""
    names = list(dict.fromkeys(case.layer for case in worth))
    width = max(6, 0.3 * min(len(names), WORTH_TICKS) + 2)
    figure = Figure(figsize=(width, 5.6 + _room(names)), layout='constrained')
    titles = {False: 'gates of one layer replaced', True: 'gates of this and all later layers of the picture replaced'}
    handles = {}
    for axis, onwards in zip(figure.subplots(2, 1, sharex=True), (False, True)):
        for i, replacement in enumerate(REPLACEMENTS):
            found = {c.layer: w for c, w in worth.items() if (c.replacement, c.onwards) == (replacement, onwards)}
            if onwards and (last := worth.get(Case(names[-1], replacement, False))):
                found[names[-1]] = last
            if not found:
                continue
            positions = [names.index(name) + 0.22 * (i - 1) for name in found]
            losses, lows, highs = (
                np.array([getattr(w, key) for w in found.values()]) for key in ('loss', 'low', 'high')
            )
            bars = np.maximum([losses - lows, highs - losses], 0)
            bars[~np.isfinite(bars)] = np.nan  # no bar can show an interval without an end
            handles[f'by {replacement}'] = axis.errorbar(
                positions, losses, bars, fmt='o', ms=4, lw=1.2, color=COLOURS[i]
            )
        axis.axhline(0, color='#888888', lw=0.8)
        axis.set(title=titles[onwards], ylabel=f'{score}: worse by, {unit}', xlim=(-0.6, len(names) - 0.4))
        _layer_ticks(axis, names, WORTH_TICKS)
        axis.spines[['top', 'right']].set_visible(False)
    _legend(figure, list(handles), list(handles.values()))
    return figure


def as_svg(figure: Figure) -> str:
    """A picture as SVG; equal input gives an equal file."""
    text = io.StringIO()
    with rc_context({'svg.hashsalt': 'gates'}):
        figure.savefig(text, format='svg', metadata=dict(Date=None))
    return text.getvalue()

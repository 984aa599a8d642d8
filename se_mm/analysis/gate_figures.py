"""Pictures of gates, as figures 6 and 7 of Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .curves import COLOURS
from .gate_statistics import GateStatistics
from .gate_worth import REPLACEMENTS, Case, Worth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = ('SE_2_3', 'SE_3_4', 'SE_4_6', 'SE_5_1', 'SE_5_2', 'SE_5_3')  # panels of figure 6
COLUMNS = 3
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


def sampled(channels: int, number: int) -> np.ndarray:
    """Numbers of evenly spaced channels."""
    return np.linspace(0, channels - 1, min(number, channels)).round().astype(int)


def _grid(number: int, height: float) -> tuple[Figure, list[Axes]]:
    rows, columns = ceil(number / COLUMNS), min(number, COLUMNS)
    figure = Figure(figsize=(4 * columns, height * rows + 0.4), layout='constrained')
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[number:]:
        axis.set_visible(False)
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes[:number]


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=6, frameon=False, fontsize='small')


def draw_classes(statistics: GateStatistics, layers: Sequence[str], classes: Sequence[str], channels: int) -> Figure:
    """Figure 6: mean gates of some classes and of all images, one panel a layer, over evenly spaced channels."""
    figure, axes = _grid(len(layers), 2.6)
    for axis, name in zip(axes, layers):
        mean = statistics.layers[name].mean
        places = sampled(mean.shape[1], channels)
        for label, group, colour in [
            *((c, statistics.group('class', c), COLOURS[i % len(COLOURS)]) for i, c in enumerate(classes)),
            ('all', 0, '#000000'),
        ]:
            axis.plot(places, mean[group, places], color=colour, lw=1.8 if group == 0 else 1.1, label=label)
        axis.set(title=name, ylim=(min(0.0, mean[0].min()), max(1.0, mean[0].max())), xlabel='channel')
    axes[0].set_ylabel('mean gate')
    _legend(figure, axes[0])
    return figure


def draw_spread(statistics: GateStatistics, layers: Sequence[str], classes: Sequence[str], channels: int) -> Figure:
    """Figure 7: mean and standard deviation of gates over the images of some classes, over evenly spaced channels."""
    figure, axes = _grid(len(layers), 2.6)
    for axis, name in zip(axes, layers):
        moments = statistics.layers[name]
        mean, deviation = moments.mean, np.sqrt(moments.variance)
        places = sampled(mean.shape[1], channels)
        for i, label in enumerate(classes):
            group, colour = statistics.group('class', label), COLOURS[i % len(COLOURS)]
            middle, width = mean[group, places], deviation[group, places]
            axis.plot(places, middle, color=colour, lw=1.2, label=label)
            axis.fill_between(places, middle - width, middle + width, color=colour, alpha=0.2, lw=0)
        axis.set(title=name, ylim=(min(0.0, mean[0].min()), max(1.0, mean[0].max())), xlabel='channel')
    axes[0].set_ylabel('gate, mean ± deviation')
    _legend(figure, axes[0])
    return figure


def draw_profile(networks: Mapping[str, GateStatistics]) -> Figure:
    """The profile over depth of one network, or of several on common axes."""
    low, high = next(iter(networks.values())).thresholds
    with_classes = all('class' in statistics.groupings for statistics in networks.values())
    rows = [(key, label) for key, label in PROFILE if key != 'eta' or with_classes]
    figure, axes = _grid(len(rows), 2.4)
    names = list(dict.fromkeys(name for statistics in networks.values() for name in statistics.layers))
    for i, (network, statistics) in enumerate(networks.items()):
        profile = statistics.profile()
        positions = [names.index(row.name) for row in profile]
        for axis, (key, label) in zip(axes, rows):
            if key == 'eta':
                shares = [row.eta_squared['class'] for row in profile]
                values = [np.nan if share is None else share.value for share in shares]
                chance = [np.nan if share is None else share.by_chance for share in shares]
                axis.plot(positions, chance, ':', color=COLOURS[i % len(COLOURS)], lw=1)
            else:
                values = [getattr(row, key) for row in profile]
            axis.plot(positions, values, 'o-', ms=3.5, lw=1.4, color=COLOURS[i % len(COLOURS)], label=network)
            axis.set_title(label.format(low=low, high=high), fontsize='medium')
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize='x-small')
            axis.set_ylim(0, None)
    if len(networks) > 1:
        _legend(figure, axes[0])
    return figure


def draw_worth(worth: Mapping[Case, Worth], score: str, unit: str) -> Figure:
    """What replacing gates costs: one layer at a time, and all layers from one to the last."""
    names = list(dict.fromkeys(case.layer for case in worth))
    figure = Figure(figsize=(max(6, 0.5 * len(names) + 3), 6.4), layout='constrained')
    titles = {False: 'one layer replaced', True: 'all layers replaced from here to the last'}
    for axis, onwards in zip(figure.subplots(2, 1, sharex=True), (False, True)):
        for i, replacement in enumerate(REPLACEMENTS):
            found = {c.layer: w for c, w in worth.items() if (c.replacement, c.onwards) == (replacement, onwards)}
            if onwards and (last := worth.get(Case(names[-1], replacement, False))):
                found[names[-1]] = last
            if not found:
                continue
            positions = [names.index(name) + 0.15 * (i - 1) for name in found]
            losses = np.array([w.loss for w in found.values()])
            bars = np.nan_to_num([losses - [w.low for w in found.values()], [w.high for w in found.values()] - losses])
            axis.errorbar(positions, losses, bars, fmt='o', ms=4, lw=1.2, color=COLOURS[i], label=replacement)
        axis.axhline(0, color='#888888', lw=0.8)
        axis.set(title=titles[onwards], ylabel=f'{score}: worse by, {unit}')
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize='small')
        axis.spines[['top', 'right']].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize='small', title='gates replaced by')
    return figure


def as_svg(figure: Figure) -> str:
    """A picture as SVG; equal input gives an equal file."""
    text = io.StringIO()
    with rc_context({'svg.hashsalt': 'gates'}):
        figure.savefig(text, format='svg', metadata=dict(Date=None))
    return text.getvalue()

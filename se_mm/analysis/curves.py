"""Learning curves of several networks on common axes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .comparison import spread
from .runs import Axis, Run

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000')  # also for colour-blind eyes
LINES = ('-', '--')


class Curve(NamedTuple):
    """Mean of the runs of a network and its deviation, which is 0 where there is one run, at common positions."""

    positions: list[float]
    means: list[float]
    deviations: list[float]


def mean_curve(runs: Sequence[dict[float, float]]) -> Curve:
    """Mean and standard deviation of runs where all of them have numbers.

    The positions are those of the run with the fewest points. Other runs are interpolated there: a run that was
    interrupted logs at other iterations afterwards.
    """
    first, last = max(map(min, runs)), min(map(max, runs))
    positions = [position for position in sorted(min(runs, key=len)) if first <= position <= last]
    interpolated = []
    for run in runs:
        own = sorted(run)
        interpolated.append(np.interp(positions, own, [run[position] for position in own]).tolist())
    spreads = [spread(list(values)) for values in zip(*interpolated)]
    return Curve(positions, [s.mean for s in spreads], [s.deviation or 0.0 for s in spreads])


def learning_curves(networks: dict[str, list[Run]]) -> dict[Axis, dict[str, Curve]]:
    """Curves of the networks by axis; runs of a network that lack a curve are left out of it.

    Args:
        networks: runs by name of the network.
    """
    axes = dict.fromkeys(axis for runs in networks.values() for run in runs for axis in run.curves)
    curves = {}
    for axis in sorted(axes, key=lambda axis: axis.quantity != 'training loss'):
        found = {name: [r.curves[axis] for r in runs if axis in r.curves] for name, runs in networks.items()}
        curves[axis] = {name: mean_curve(runs) for name, runs in found.items() if runs}
    return curves


def draw_curves(axis: Axis, curves: dict[str, Curve], numbers: dict[str, int]) -> str:
    """Picture of all curves of an axis, as SVG.

    Args:
        axis: what the curves show.
        curves: by name of the network.
        numbers: of the networks, which give colours and lines.
    """
    many = len(curves) > 4
    figure = Figure(figsize=(7.5 if many else 5, 4.2 if many else 3.4), layout='constrained')
    plot = figure.subplots()
    for name, (positions, means, deviations) in curves.items():
        colour, line = COLOURS[numbers[name] % len(COLOURS)], LINES[numbers[name] % len(LINES)]
        marker = 'o' if len(positions) < 30 else None
        plot.plot(positions, means, line, color=colour, marker=marker, ms=4, lw=1.6, label=name)
        if any(deviations):
            low, high = zip(*((mean - d, mean + d) for mean, d in zip(means, deviations)))
            if len(positions) == 1:
                plot.plot(positions * 2, [low[0], high[0]], color=colour, lw=1.2)
            else:
                plot.fill_between(positions, low, high, color=colour, alpha=0.08 if many else 0.18, lw=0)
    plot.set(xlabel=axis.unit, ylabel=axis.quantity)
    plot.set_xlim(left=0)
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.spines[['top', 'right']].set_visible(False)
    plot.grid(axis='y', color='#dddddd', lw=0.6)
    if many:
        figure.legend(loc='outside right upper', frameon=False, fontsize='small', handlelength=3)
    else:
        plot.legend(frameon=False, fontsize='small')
    text = io.StringIO()
    with rc_context({'svg.hashsalt': axis.quantity}):  # equal input, equal file
        figure.savefig(text, format='svg', metadata=dict(Date=None))
    return text.getvalue()

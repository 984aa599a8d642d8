"""Pictures of measured costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from se_mm.utils import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, str]


def number(row: Row, column: str) -> float | None:
    return float(row[column]) if row.get(column) else None


def name_of(row: Row) -> str:
    alone = ', beside plain alone' if row['part'] == 'target' else ''
    return row['variant'] + (', compiled' if row['compiled'] == 'True' else '') + alone


def draw_costs(rows: list[Row], path: Path) -> None:
    """Draw the rows that tools/benchmark.py writes: bars of variants, and lines of the growth where it was measured."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if row['step_ratio_p50']]
    bars = [row for row in timed if row['part'] in ('target', 'variants', 'detector') and row['variant'] != 'plain']
    growth = [row for row in timed if row['part'] == 'growth']
    heights = [0.3 * len(bars) + 1.2] * bool(bars) + [4.5] * bool(growth)
    figure = Figure(figsize=(13, sum(heights) or 3), layout='constrained')
    panels = iter(figure.subfigures(max(len(heights), 1), 1, height_ratios=heights or [1], squeeze=False)[:, 0])
    if bars:
        time, memory = next(panels).subplots(1, 2)
        _bars(time, bars, 'step_ratio_p50', 'time of a step')
        _bars(memory, [row for row in bars if row['kept_ratio']], 'kept_ratio', 'activations kept for backward')
    if growth:
        size, depth = _usual(growth, 'height'), _usual(growth, 'depth')
        batch = _usual([row for row in growth if row['depth'] != depth] or growth, 'batch')
        panels_of = dict(
            batch=('images in a batch', dict(height=size, depth=depth)),
            height=('height of one image', dict(batch='1', depth=depth)),
            depth=('depth', dict(batch=batch, height=size)),
        )
        axes = next(panels).subplots(1, 3, sharey=True)
        for axis, (key, (label, fixed)) in zip(axes, panels_of.items()):
            _lines(axis, [row for row in growth if fixed.items() <= row.items()], key, label)
        axes[0].set(ylabel='plain ResNet = 1')
        axes[0].legend(fontsize='small')
    figure.suptitle(f'SE-ResNet against ResNet: {rows[0]["device"]}, {rows[0]["threads"]} threads', fontsize='medium')
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110, format='png')


def _usual(rows: list[Row], key: str) -> str:
    return Counter(row[key] for row in rows).most_common(1)[0][0]


def _bars(axis: Axes, rows: list[Row], column: str, title: str) -> None:
    labels = [f'{name_of(row)}, {"detector" if row["part"] == "detector" else row["mode"]}' for row in rows]
    values = [number(row, column) for row in rows]
    spread = None
    if column.endswith('p50'):
        limits = [[number(row, column.replace('p50', p)) for row in rows] for p in ('p20', 'p80')]
        spread = [[abs(limit - value) for limit, value in zip(side, values)] for side in limits]
    axis.barh(
        range(len(rows)), values, xerr=spread, color=['C0' if row['variant'] == 'fused' else 'C7' for row in rows]
    )
    axis.set_yticks(range(len(rows)), labels)
    axis.invert_yaxis()
    axis.axvline(1, color='k', lw=0.8)
    axis.set(title=f'{title}, plain ResNet = 1', xlim=(0.8, None))


def _lines(axis: Axes, rows: list[Row], key: str, label: str) -> None:
    for color, variant in (('C0', 'fused'), ('C7', 'unfused')):
        points = sorted(((int(row[key]), row) for row in rows if row['variant'] == variant), key=lambda point: point[0])
        for column, style, what in (
            ('step_ratio_p50', '-o', 'time of a step'),
            ('kept_ratio', '--s', 'kept for backward'),
        ):
            values = [number(row, column) for _, row in points]
            axis.plot([x for x, _ in points], values, style, color=color, ms=4, label=f'{variant}, {what}')
    axis.axhline(1, color='k', lw=0.8)
    if key == 'batch':
        axis.set_xscale('log', base=2)
    axis.set(xlabel=label)

"""Pictures of what SE costs."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from se_mm.utils import InputError, written_whole

from .cost import Quantiles
from .cost_file import Cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    'fused': 'SE in se_mm',
    'unfused': 'SE in se_mm, fused_se=False',
    'mmpretrain SE': 'SE in mmpretrain',
    'timm SE': 'SE in timm',
    'mmpretrain plain': 'plain in mmpretrain',
    'timm plain': 'plain in timm',
}
OVERVIEW = ('fused', 'mmpretrain SE', 'timm SE')
COLOURS = dict(fused='#0072b2')
OTHERS = '#8c8c8c'


class Comparison(NamedTuple):
    """Networks in one setting, by one quantity."""

    title: str
    part: str
    mode: str
    compiled: bool
    quantity: str


STORED = Comparison('stored activations', 'variants', 'train', False, 'stored_ratio')
TRAINING = Comparison('time of a training step', 'variants', 'train', False, 'step_ratio')
INFERENCE = Comparison('time of inference', 'variants', 'inference', False, 'step_ratio')
DETAILS = (
    (
        STORED,
        TRAINING,
        INFERENCE,
        Comparison('Faster R-CNN:\nstored activations', 'detector', 'train', False, 'stored_ratio'),
        Comparison('Faster R-CNN:\ntime of a training step', 'detector', 'train', False, 'step_ratio'),
    ),
    (
        Comparison('compiled:\nstored activations', 'variants', 'train', True, 'stored_ratio'),
        Comparison('compiled:\ntime of a training step', 'variants', 'train', True, 'step_ratio'),
        Comparison('compiled:\ntime of inference', 'variants', 'inference', True, 'step_ratio'),
    ),
)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture as PNG."""
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110, format='png')


def draw_overview(costs: list[Cost]) -> Figure | None:
    """Draw what SE adds to the plain network in se_mm and elsewhere, as bars, with that as the title.

    Returns:
        the picture, None if there is nothing to draw.

    Raises:
        InputError: matplotlib is missing.
    """
    groups = []
    for comparison in (STORED, TRAINING, INFERENCE):
        found = [cost for cost in _select(costs, comparison) if cost.variant in OVERVIEW]
        if found:
            groups.append((comparison, found))
    if not groups:
        return None
    figure = _new_figure(9, 1.5 + sum(0.5 + 0.36 * len(found) for _, found in groups))
    axis, top, ticks = figure.subplots(), 0.0, {}
    for comparison, found in groups:
        first = found[0]
        images = f'{first.batch} images' if first.batch > 1 else '1 image'
        axis.text(1, top, f' {comparison.title}, {images}', weight='bold', va='center')
        for cost in found:
            top += 1
            low, middle, high = _quantiles(cost, comparison.quantity)
            axis.barh(top, middle - 1, 0.8, left=1, color=COLOURS.get(cost.variant, OTHERS))
            if high > low:
                axis.plot([low, high], [top, top], color='black', lw=1.2)
            axis.text(max(middle, high), top, f'  {_percent(middle)}', va='center')
            ticks[top] = LABELS[cost.variant]
        top += 1.4
    axis.set_yticks(list(ticks), ticks.values())
    axis.axvline(1, color='black', lw=0.8)
    axis.set(xticks=[1, 1.1, 1.2], xticklabels=['plain network = 1', '1.1', '1.2'], ylim=(top - 0.6, -0.7))
    axis.margins(x=0.12)
    axis.spines[['top', 'right', 'bottom', 'left']].set_visible(False)
    axis.tick_params(length=0)
    figure.suptitle(_message(groups), weight='bold', ha='left', x=0.01)
    note = (
        f'ResNet-{first.depth}, images of {_size(first)}, {first.device}, {first.threads} threads. Bars: median; '
        "black lines: p20 to p80.\nA time is divided by that of mmdet's plain network in the same round."
    )
    return _with_note(figure, note)


def _message(groups: list[tuple[Comparison, list[Cost]]]) -> str:
    """What training costs in se_mm, and below it what it costs elsewhere."""
    sentences = []
    for names, where in ((OVERVIEW[:1], 'in se_mm'), (OVERVIEW[1:], 'elsewhere')):
        parts = []
        for comparison, found in groups:
            middles = [_quantiles(cost, comparison.quantity).p50 for cost in found if cost.variant in names]
            if middles and comparison.mode == 'train':
                values = dict.fromkeys(_percent(value) for value in (min(middles), max(middles)))
                parts.append(f'{" to ".join(values)} {"time" if comparison is TRAINING else comparison.title}')
        if parts:
            sentences.append(f'Training with SE {where}: {", ".join(parts)}')
    return '\n'.join(sentences)


def draw_details(costs: list[Cost]) -> Figure | None:
    """Draw all comparisons, and the cost over batch, image and depth where it was measured.

    Returns:
        the picture, None if there is nothing to draw.

    Raises:
        InputError: matplotlib is missing.
    """
    rows = [[(comparison, _select(costs, comparison)) for comparison in row] for row in DETAILS]
    rows = [row for row in rows if any(found for _, found in row)]
    growth = [cost for cost in costs if cost.part == 'growth' and cost.step_ratio and not cost.remark]
    heights = [3.1 * len(rows)] * bool(rows) + [6.5] * bool(growth)
    if not heights:
        return None
    figure = _new_figure(13, sum(heights))
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if rows:
        _draw_comparisons(next(parts), rows)
    if growth:
        _draw_growth(next(parts), growth)
    note = (
        f'{costs[0].device}, {costs[0].threads} threads. Dots: median; lines and bands: p20 to p80. '
        "A time is divided by that of mmdet's plain network in the same round."
    )
    return _with_note(figure, note)


def _draw_comparisons(figure: Figure, rows: list[list[tuple[Comparison, list[Cost]]]]) -> None:
    white = dict(facecolor='white', edgecolor='none', pad=0.5)
    present = {cost.variant for row in rows for _, found in row for cost in found}
    places = {variant: place for place, variant in enumerate(name for name in LABELS if name in present)}
    columns = max(i for row in rows for i, (_, found) in enumerate(row, 1) if found)
    axes = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.ravel():
        axis.set_visible(False)
    for axes_of_row, row in zip(axes, rows):
        for axis, (comparison, found) in zip(axes_of_row, row):
            for cost in found:
                low, middle, high = _quantiles(cost, comparison.quantity)
                y, colour = places[cost.variant], COLOURS.get(cost.variant, OTHERS)
                axis.plot([low, high], [y, y], color=colour, lw=2)
                axis.plot(middle, y, 'o', color=colour)
                axis.text(middle, y - 0.22, f'{middle:.2f}', ha='center', va='bottom', fontsize='small', bbox=white)
            axis.set_visible(bool(found))
            axis.set_title(comparison.title, fontsize='medium')
            axis.axvline(1, color='black', lw=0.8, zorder=1)
            axis.spines[['top', 'right', 'left']].set_visible(False)
            axis.tick_params(left=False, labelbottom=True)
    axes[0, 0].locator_params(axis='x', nbins=4)
    axes[0, 0].set_yticks(list(places.values()), [LABELS[name] for name in places])
    axes[0, 0].set_ylim(len(places) - 0.5, -0.7)
    figure.suptitle('Networks side by side, plain network of mmdet = 1', weight='bold', ha='left', x=0.01)


def _draw_growth(figure: Figure, growth: list[Cost]) -> None:
    size, depth = _usual(growth, 'height'), _usual(growth, 'depth')
    batch = _usual([cost for cost in growth if cost.depth != depth] or growth, 'batch')
    columns = (
        ('batch', 'images in a batch', dict(height=size, depth=depth), f'ResNet-{depth}, images of {size}²'),
        ('height', 'pixels of the image', dict(batch=1, depth=depth), f'ResNet-{depth}, one image'),
        ('depth', 'layers of the network', dict(batch=batch, height=size), f'{batch} images of {size}²'),
    )
    axes = figure.subplots(2, len(columns), sharex='col', sharey='row')
    for (stored, step), (key, label, fixed, title) in zip(axes.T, columns):
        chosen = [cost for cost in growth if all(getattr(cost, name) == value for name, value in fixed.items())]
        for axis, quantity in ((stored, 'stored_ratio'), (step, 'step_ratio')):
            _draw_lines(axis, chosen, key, quantity, labelled=axis is axes[0, 0])
        ticks = {getattr(cost, key): _size(cost) if key == 'height' else getattr(cost, key) for cost in chosen}
        if key == 'batch':
            step.set_xscale('log', base=2)
        step.set_xticks(list(ticks), ticks.values())
        step.set_xlabel(label)
        stored.set_title(title, fontsize='medium')
    axes[0, 0].set_ylabel(STORED.title)
    axes[1, 0].set_ylabel(TRAINING.title)
    title = 'SE in se_mm over batch, image and depth, plain network of mmdet = 1'
    figure.suptitle(title, weight='bold', ha='left', x=0.01)


def _draw_lines(axis: Axes, costs: list[Cost], key: str, quantity: str, *, labelled: bool) -> None:
    for variant in ('fused', 'unfused'):
        found = sorted((cost for cost in costs if cost.variant == variant), key=attrgetter(key))
        if found:
            x, colour = [getattr(cost, key) for cost in found], COLOURS.get(variant, OTHERS)
            low, middle, high = zip(*(_quantiles(cost, quantity) for cost in found))
            axis.plot(x, middle, '-o', color=colour, ms=4)
            axis.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            if labelled:
                axis.text(x[-1], middle[-1] + 0.006, LABELS[variant], color=colour, ha='right', va='bottom')
    axis.axhline(1, color='black', lw=0.8)
    axis.spines[['top', 'right']].set_visible(False)


def _select(costs: list[Cost], comparison: Comparison) -> list[Cost]:
    """Costs without a remark, in the order of ``LABELS``; of the part 'target' if there are no variants."""
    parts = ('variants', 'target') if comparison.part == 'variants' else (comparison.part,)
    for part in parts:
        found = {
            cost.variant: cost
            for cost in costs
            if (cost.part, cost.mode, cost.compiled, cost.remark) == (part, comparison.mode, comparison.compiled, '')
            and getattr(cost, comparison.quantity) is not None
        }
        if found:
            break
    return [found[variant] for variant in LABELS if variant in found]


def _quantiles(cost: Cost, quantity: str) -> Quantiles:
    value = getattr(cost, quantity)
    return value if isinstance(value, Quantiles) else Quantiles(value, value, value)


def _usual(costs: list[Cost], key: str) -> int:
    return Counter(getattr(cost, key) for cost in costs).most_common(1)[0][0]


def _percent(ratio: float) -> str:
    percent = 100 * (ratio - 1)
    return f'{percent:+.{0 if abs(percent) >= 1 else 1}f} %'


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f'pictures need matplotlib: pip install matplotlib ({error})') from error
    return Figure(figsize=(width, height), layout='constrained')


def _size(cost: Cost) -> str:
    return f'{cost.height}²' if cost.height == cost.width else f'{cost.height}x{cost.width}'


def _with_note(figure: Figure, note: str) -> Figure:
    figure.supxlabel(note, fontsize='small', ha='left', x=0.01)
    return figure

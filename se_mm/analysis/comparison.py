"""Numbers of networks side by side: mean and spread over runs, and which differences exceed the noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from se_mm.utils import InputError

DETECTION = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')
RECALL = ('AR1', 'AR10', 'AR100', 'AR_S', 'AR_M', 'AR_L')
ERROR = ('top1', 'top5')  # lower is better
OF_MMDET = dict(zip(('bbox_mAP', *(f'bbox_mAP_{end}' for end in ('50', '75', 's', 'm', 'l'))), DETECTION))


class Spread(NamedTuple):
    """Mean and sample standard deviation of the values of runs, the latter None for one run."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f'{self.mean:.1f}' if self.deviation is None else f'{self.mean:.1f} ± {self.deviation:.1f}'


def signed(value: float, digits: int) -> str:
    """A difference as text, with its sign unless it is rounded to zero."""
    return f'{value:+.{digits}f}' if round(value, digits) else f'{0:.{digits}f}'


class Difference(NamedTuple):
    """Difference of two means.

    Attributes:
        value: the difference.
        low: lower end of its 95 % interval, None if the noise is not known.
        high: upper end.
        verdict: 'better', 'worse' or 'inside the noise', '' if the noise is not known.
    """

    value: float
    low: float | None
    high: float | None
    verdict: str

    @property
    def interval(self) -> str:
        """The interval as text."""
        return '' if self.low is None else f'{signed(self.low, 1)} to {signed(self.high, 1)}'


def measured_values(evaluations: Sequence[dict]) -> dict[str, list[float]]:
    """AP, AR and error in percent, of each evaluation.

    Args:
        evaluations: contents of ``metrics.json``, of runs of one config.

    Returns:
        values by the names of ``DETECTION``, ``RECALL`` and ``ERROR``; an accuracy is turned into an error.

    Raises:
        InputError: the evaluations are of different data, or two of one checkpoint.
    """
    _check_runs(evaluations)
    values: dict[str, list[float]] = {}
    for evaluation in evaluations:
        own: dict[str, float] = {}  # a run counts once, also if several evaluators have one metric
        for name, value in evaluation['metrics'].items():
            end = name.rpartition('/')[2]
            box_metric = OF_MMDET.get(end, name).removeprefix('bbox_')
            if box_metric in (*DETECTION, *RECALL) and value is not None and value >= 0:
                own.setdefault(box_metric, 100 * value)
            elif end in ERROR and ('error' in name or 'accuracy' in name):
                own.setdefault(end, value if 'error' in name else 100 - value)
        for metric, value in own.items():
            values.setdefault(metric, []).append(value)
    return values


def _check_runs(evaluations: Sequence[dict]) -> None:
    checkpoints, first = {}, None
    for evaluation in evaluations:
        checkpoint = evaluation.get('checkpoint') or {}
        other = checkpoints.setdefault(checkpoint.get('sha256') or len(checkpoints), checkpoint)
        if other is not checkpoint:
            raise InputError(
                f'{checkpoint.get("path")} and {other.get("path")} are one checkpoint: a run counts once, '
                'train again with another randomness.seed'
            )
        images = (evaluation.get('dataset') or {}).get('images')
        first = first or images
        if images != first:
            raise InputError(
                f'runs of {evaluation["config"]} were evaluated on different data, {first} and {images} images: '
                'evaluate all on the same'
            )


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; numbers that are not finite, as of a loss, have no deviation."""
    if not all(map(math.isfinite, values)):
        return Spread(sum(values) / len(values), None)
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def difference(name: str, values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Difference of the means with its 95 % interval by Welch's t test, which allows unequal spreads.

    Args:
        name: of the metric, which says whether less is better.
        values: of the runs of a network.
        baseline: of the runs of the network that it is compared with.
    """
    value, low, high = statistics.fmean(values) - statistics.fmean(baseline), None, None
    if len(values) > 1 and len(baseline) > 1 and (statistics.stdev(values) or statistics.stdev(baseline)):
        from scipy.stats import ttest_ind

        low, high = map(float, ttest_ind(values, baseline, equal_var=False).confidence_interval(0.95))
    if low is None or math.isnan(low):
        return Difference(value, None, None, '')
    verdict = 'inside the noise' if low <= 0 <= high else 'better' if (value < 0) == (name in ERROR) else 'worse'
    return Difference(value, low, high, verdict)


def differences(values: dict[str, list[float]], baseline: dict[str, list[float]]) -> dict[str, Difference]:
    """:func:`difference` of each metric that both networks have."""
    return {name: difference(name, values[name], baseline[name]) for name in values if name in baseline}

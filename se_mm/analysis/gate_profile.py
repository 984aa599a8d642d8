"""One SE layer over a data set in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # which imports this file
    from .gate_statistics import Moments


@dataclass(frozen=True)
class Share:
    """A between-group share of variance.

    Attributes:
        value: from 0 to 1.
        by_chance: what groups without meaning would have on average, (groups - 1) / (members - 1).
    """

    value: float
    by_chance: float

    @property
    def beyond_chance(self) -> float:
        """About 0 for groups without meaning, 1 if groups explain everything: epsilon squared of an analysis of
        variance."""
        return (self.value - self.by_chance) / (1 - self.by_chance) if self.by_chance < 1 else 0.0


@dataclass(frozen=True)
class LayerProfile:
    """One SE layer in a few numbers.

    Attributes:
        name, path: of the layer.
        channels: C.
        mean: of all gates.
        channel_spread: standard deviation over channels of their means.
        eta_squared: by name of a grouping, of :func:`eta_squared`; None if there are less than two groups with images.
        selectivity: of :func:`class_selectivity`; None if there are less than two classes with images, or negative
            mean gates.
        selectivity_by_chance: of :func:`selectivity_by_chance`.
        class_factor: of :func:`class_factor`.
        high, low: shares of the gates above and below the thresholds.
        dead: share of the channels whose gate, without its sign, is below the lower threshold for every image.
        from_identity: root of the mean of (s - 1)^2 over images and channels.
        from_mean: root of the mean of (s - mean of the channel)^2 over images and channels.
        position_spread: mean standard deviation over positions, None if there is one gate a channel.
    """

    name: str
    path: str
    channels: int
    mean: float
    channel_spread: float
    eta_squared: dict[str, Share | None]
    selectivity: float | None
    selectivity_by_chance: float | None
    class_factor: float | None
    high: float
    low: float
    dead: float
    from_identity: float
    from_mean: float
    position_spread: float | None


def eta_squared(moments: Moments, groups: slice) -> Share | None:
    """Between-group share of the variance over images, sums of squares added up over channels.

    An image counts once for each group that it is in. 0 means that the groups have equal means, 1 that the gates
    of a group do not vary.

    Args:
        moments: of a layer.
        groups: of a grouping.

    Returns:
        None if there are less than two groups with images, or no variance.
    """
    count = moments.count[groups].cpu().numpy().astype(float)
    seen = count > 0
    if seen.sum() < 2:
        return None
    count, mean, variance = count[seen, None], moments.mean[groups][seen], moments.variance[groups][seen]
    whole = (count * mean).sum(0) / count.sum()
    between = (count * (mean - whole) ** 2).sum()
    within = (count * variance).sum()
    if between + within == 0:
        return None
    return Share(float(between / (between + within)), float((len(count) - 1) / max(count.sum() - 1, 1)))


def class_selectivity(mean: np.ndarray) -> float | None:
    """Class selectivity index, mean over channels of (m - r) / (m + r).

    m is the mean gate of the class with the highest mean, r the mean of the other classes' means. Morcos et al.,
    On the importance of single directions for generalization, https://arxiv.org/abs/1803.06959, section 2.3.

    Args:
        mean: (classes, channels), NaN for classes without images.

    Returns:
        None if there are less than two classes with images, or negative mean gates.
    """
    mean = mean[~np.isnan(mean).any(1)]
    if len(mean) < 2 or mean.min() < 0:
        return None
    highest = mean.max(0)
    rest = (mean.sum(0) - highest) / (len(mean) - 1)
    total = highest + rest
    return float(np.divide(highest - rest, total, out=np.zeros_like(total), where=total != 0).mean())


def class_factor(mean: np.ndarray) -> float | None:
    """Share of the differences between classes that one factor a class explains, from 0 to 1.

    The mean gates of a class are approximated by a factor times the mean gates of all classes together. 1 means that
    all classes have the same gates up to scale, as the SE paper finds in SE_5_3 (section 7.2); 0 that no class is open
    wider or narrower than another one.

    Args:
        mean: (classes, channels), NaN for classes without images.

    Returns:
        None if there are less than two classes with images, or no differences.
    """
    mean = mean[~np.isnan(mean).any(1)]
    if len(mean) < 2:
        return None
    together = mean.mean(0)
    differences = ((mean - together) ** 2).sum()
    factors = mean @ together / max(together @ together, np.finfo(float).tiny)
    rest = ((mean - factors[:, None] * together) ** 2).sum()
    return float(1 - rest / differences) if differences else None


def selectivity_by_chance(moments: Moments, classes: slice) -> float | None:
    """Class selectivity index of classes without meaning: means of as many images, drawn from a normal distribution.

    Args:
        moments: of a layer.
        classes: of the grouping.

    Returns:
        None where :func:`class_selectivity` is None.
    """
    count = moments.count[classes].cpu().numpy()
    count = count[count > 0]
    if class_selectivity(moments.mean[classes]) is None:
        return None
    noise = np.random.default_rng(0).normal(size=(len(count), moments.sum.shape[1])) / np.sqrt(count)[:, None]
    return class_selectivity((moments.mean[0] + noise * np.sqrt(moments.variance[0])).clip(0))

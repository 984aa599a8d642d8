"""95 % intervals of differences between two evaluations on the same images."""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
JACKKNIFE_GROUPS = 20


def paired_difference(gained: int, lost: int, images: int) -> tuple[float, float]:
    """Score interval of the difference of two proportions of the same images.

    Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998). The interval also holds where few or no images differ.

    Args:
        gained: images that count in the second proportion only.
        lost: images that count in the first proportion only.
        images: how many there are, at least one.

    Returns:
        Lower and upper end of second less first proportion, from -1 to 1.
    """
    z = stats.norm.ppf((1 + LEVEL) / 2)

    def deviations(difference: float) -> float:
        """How many standard deviations the observed difference lies above a true one."""
        b = (2 * images + lost - gained) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        share_lost = (np.sqrt(max(b**2 - 8 * images * c, 0)) - b) / (4 * images)  # the likeliest
        variance = images * (2 * share_lost + difference * (1 - difference))
        return (gained - lost - images * difference) / np.sqrt(max(variance, 1e-300))

    observed, end = (gained - lost) / images, 1 - 1e-12
    low = optimize.brentq(lambda x: deviations(x) - z, -end, observed) if observed > -1 else -1.0
    high = optimize.brentq(lambda x: deviations(x) + z, observed, end) if observed < 1 else 1.0
    return low, high


def left_out(images: int, groups: int = JACKKNIFE_GROUPS) -> list[np.ndarray]:
    """For each of some groups of images, the places of all other images.

    Args:
        images: how many there are.
        groups: how many; at most ``images``.
    """
    groups = min(groups, images)
    group_of = np.random.default_rng(0).permutation(images) % max(groups, 1)
    return [np.flatnonzero(group_of != group) for group in range(groups)]


def jackknife(whole: float, without: np.ndarray) -> tuple[float, float]:
    """Interval of a number that is computed from images.

    The delete-a-group jackknife: Kott, The delete-a-group jackknife, Journal of Official Statistics 17 (2001).

    Args:
        whole: the number for all images.
        without: the number for each of :func:`left_out`.

    Returns:
        Lower and upper end; both infinite if there are less than two groups.
    """
    groups = len(without)
    if groups < 2:
        return -np.inf, np.inf
    deviation = np.sqrt((groups - 1) / groups * ((without - whole) ** 2).sum())
    half = stats.t.ppf((1 + LEVEL) / 2, groups - 1) * deviation
    return whole - half, whole + half

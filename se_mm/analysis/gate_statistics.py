"""What gates do over a data set: moments of every channel for groups of images, in one pass.

Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507, section 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from se_mm.utils import InputError, written_whole

from .gates import Gates

ALL = 'all'
SUMS = ('sum', 'squares', 'low', 'high')


@dataclass
class Moments:
    """Sums over images of one SE layer's gates, for G groups of images and C channels.

    Sums of float64 add up to the sums of all processes, whoever saw which image.

    Attributes:
        count: (G,), images.
        sum: (G, C).
        squares: (G, C), sum of squares.
        minimum: (G, C), infinite without images.
        maximum: (G, C), minus infinite without images.
        low: (G, C), images with a gate below the lower threshold.
        high: (G, C), images with a gate above the upper threshold.
        spread: (C,), sum over all images of the standard deviation over positions; None if there is one gate a channel.
    """

    count: Tensor
    sum: Tensor
    squares: Tensor
    minimum: Tensor
    maximum: Tensor
    low: Tensor
    high: Tensor
    spread: Tensor | None = None

    @classmethod
    def empty(cls, groups: int, gates: Gates) -> Moments:
        """Of no image."""
        shape, device = (groups, gates.mean.shape[1]), gates.mean.device
        exact = torch.promote_types(gates.mean.dtype, torch.float32)
        return cls(
            count=torch.zeros(groups, dtype=torch.int64, device=device),
            sum=torch.zeros(shape, dtype=torch.float64, device=device),
            squares=torch.zeros(shape, dtype=torch.float64, device=device),
            minimum=torch.full(shape, torch.inf, dtype=exact, device=device),
            maximum=torch.full(shape, -torch.inf, dtype=exact, device=device),
            low=torch.zeros(shape, dtype=torch.int32, device=device),
            high=torch.zeros(shape, dtype=torch.int32, device=device),
            spread=None if gates.spread is None else torch.zeros(shape[1:], dtype=torch.float64, device=device),
        )

    def add(self, gates: Gates, images: Tensor, groups: Tensor, thresholds: tuple[float, float]) -> None:
        """Add images.

        Args:
            gates: of N images.
            images: (M,), image of each membership.
            groups: (M,), group of each membership.
            thresholds: lower and upper.
        """
        values = gates.mean[images]  # (M, C)
        wide, (low, high) = values.double(), thresholds
        exact = values.to(self.minimum.dtype)
        self.count.index_add_(0, groups, torch.ones_like(groups))
        self.sum.index_add_(0, groups, wide)
        self.squares.index_add_(0, groups, wide.square())
        rows = groups[:, None].expand_as(exact)
        self.minimum.scatter_reduce_(0, rows, exact, 'amin')
        self.maximum.scatter_reduce_(0, rows, exact, 'amax')
        self.low.index_add_(0, groups, (wide < low).int())
        self.high.index_add_(0, groups, (wide > high).int())
        if self.spread is not None:
            self.spread += gates.spread.double().sum(0)

    def merge(self, other: Moments) -> None:
        """Add the images that another process has seen."""
        self.count += other.count.to(self.count.device)
        for name in SUMS:
            mine = getattr(self, name)
            mine += getattr(other, name).to(mine.device)
        self.minimum = torch.minimum(self.minimum, other.minimum.to(self.minimum.device))
        self.maximum = torch.maximum(self.maximum, other.maximum.to(self.maximum.device))
        if self.spread is not None:
            self.spread += other.spread.to(self.spread.device)

    @property
    def mean(self) -> np.ndarray:
        """(G, C), NaN for groups without images."""
        with np.errstate(invalid='ignore'):
            return self.sum.cpu().numpy() / self.count.cpu().numpy()[:, None]

    @property
    def variance(self) -> np.ndarray:
        """(G, C), over images, not below 0; NaN for groups without images."""
        with np.errstate(invalid='ignore'):
            square = self.squares.cpu().numpy() / self.count.cpu().numpy()[:, None]
        return np.clip(square - self.mean**2, 0, None)


@dataclass(frozen=True)
class Grouping:
    """A division of images.

    Attributes:
        name: of the division, e.g. 'class'.
        groups: names of the groups, e.g. of the classes.
        first: number of its first group among all groups.
    """

    name: str
    groups: tuple[str, ...]
    first: int

    @property
    def places(self) -> slice:
        """Of its groups among all groups."""
        return slice(self.first, self.first + len(self.groups))


class GateStatistics:
    """Moments of all SE layers of a network over a data set.

    Args:
        groupings: for each name of a division the names of its groups, e.g. ``dict(class=['cat', 'dog'])``. An image
            may be in no group, in one or in several. Group 0 are all images.
        thresholds: gates below the first count as low, gates above the second as high.
        paths: of the layers' modules, by name of the layer.
    """

    def __init__(
        self,
        groupings: Mapping[str, Sequence[str]] | None = None,
        thresholds: tuple[float, float] = (0.1, 0.9),
        paths: Mapping[str, str] | None = None,
    ) -> None:
        self.thresholds, self.paths = thresholds, dict(paths or {})
        self.layers: dict[str, Moments] = {}
        self.groupings: dict[str, Grouping] = {}
        self.groups = [ALL]
        for name, groups in (groupings or {}).items():
            self.groupings[name] = Grouping(name, tuple(groups), len(self.groups))
            self.groups += groups

    def add(self, gates: Mapping[str, Gates], members: Sequence[Iterable[int]] | None = None) -> None:
        """Add N images.

        Args:
            gates: of :meth:`GateRecorder.take`.
            members: groups of each image, by number: 0 are all images and must not be there, 1 is the first group.

        Raises:
            InputError: a layer has gates of another number of images than there are members.
        """
        for name, found in gates.items():
            number = len(found.mean)
            if members is not None and len(members) != number:
                raise InputError(
                    f'{name} has gates of {number} images, but {len(members)} images came: a layer that runs several '
                    'times for an image has no gates of the image'
                )
            of_each = [()] * number if members is None else members
            pairs = [(i, group) for i, groups in enumerate(of_each) for group in (0, *set(groups))]
            images, groups = torch.tensor(pairs, device=found.mean.device).unbind(1)
            if name not in self.layers:
                self.layers[name] = Moments.empty(len(self.groups), found)
            self.layers[name].add(found, images, groups, self.thresholds)

    def merge(self, other: GateStatistics) -> None:
        """Add what another process has seen with the same groups."""
        for name, moments in other.layers.items():
            if name in self.layers:
                self.layers[name].merge(moments)
            else:
                self.layers[name] = moments

    @property
    def images(self) -> int:
        """Number of images."""
        return max((int(moments.count[0]) for moments in self.layers.values()), default=0)

    def group(self, grouping: str, name: str) -> int:
        """Number of a group.

        Raises:
            InputError: there is no such grouping or group, or the group has no images.
        """
        if grouping not in self.groupings or name not in self.groupings[grouping].groups:
            known = self.groupings[grouping].groups if grouping in self.groupings else ()
            raise InputError(f'{grouping} {name} does not exist: choose of {", ".join(known) or "none"}')
        number = self.groupings[grouping].first + self.groupings[grouping].groups.index(name)
        if not any(moments.count[number] for moments in self.layers.values()):
            raise InputError(f'{grouping} {name} has no images')
        return number

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, by ``LAYER/QUANTITY``; quantities are those of :class:`Moments`, with mean and variance."""
        found = {'groups': np.array(self.groups), 'thresholds': np.array(self.thresholds)}
        for name, moments in self.layers.items():
            found[f'{name}/mean'], found[f'{name}/variance'] = moments.mean, moments.variance
            for quantity in ('count', 'minimum', 'maximum', 'low', 'high', 'spread'):
                if (value := getattr(moments, quantity)) is not None:
                    found[f'{name}/{quantity}'] = value.cpu().numpy()
        return found

    def save(self, path: Path) -> None:
        """Write :meth:`arrays` as a compressed npz file."""
        with written_whole(path) as partial, partial.open('wb') as file:
            np.savez_compressed(file, **self.arrays())

    def profile(self) -> list[LayerProfile]:
        """A row a layer, in the order of the network."""
        return [self._profile(name, moments) for name, moments in self.layers.items()]

    def _profile(self, name: str, moments: Moments) -> LayerProfile:
        mean, variance = moments.mean[0], moments.variance[0]
        values = float(moments.count[0]) * len(mean)
        low, high = self.thresholds
        classes = self.groupings.get('class')
        return LayerProfile(
            name=name,
            path=self.paths.get(name, name),
            channels=len(mean),
            mean=float(mean.mean()),
            channel_spread=float(mean.std()),
            eta_squared={grouping.name: eta_squared(moments, grouping.places) for grouping in self.groupings.values()},
            selectivity=class_selectivity(moments.mean[classes.places]) if classes else None,
            high=float(moments.high[0].sum()) / values,
            low=float(moments.low[0].sum()) / values,
            dead=float((moments.maximum[0] < low).double().mean()),
            from_identity=float(np.sqrt((variance + (mean - 1) ** 2).mean())),
            from_mean=float(np.sqrt(variance.mean())),
            position_spread=None if moments.spread is None else float(moments.spread.mean()) / float(moments.count[0]),
        )


@dataclass(frozen=True)
class Share:
    """A between-group share of variance.

    Attributes:
        value: from 0 to 1.
        by_chance: what groups without meaning would have on average, (groups - 1) / (members - 1).
    """

    value: float
    by_chance: float


@dataclass(frozen=True)
class LayerProfile:
    """One SE layer in a few numbers.

    Attributes:
        name, path: of the layer.
        channels: C.
        mean: of all gates.
        channel_spread: standard deviation over channels of their means.
        eta_squared: by name of a grouping, of :func:`eta_squared`; None if there are less than two groups with images.
        selectivity: of :func:`class_selectivity`; None if there are less than two classes with images.
        high, low: shares of the gates above and below the thresholds.
        dead: share of the channels whose gate is below the lower threshold for every image.
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
        None if there are less than two classes with images.
    """
    mean = mean[~np.isnan(mean).any(1)]
    if len(mean) < 2:
        return None
    highest = mean.max(0)
    rest = (mean.sum(0) - highest) / (len(mean) - 1)
    total = highest + rest
    return float(np.divide(highest - rest, total, out=np.zeros_like(total), where=total != 0).mean())

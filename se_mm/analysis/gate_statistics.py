"""What gates do over a data set: moments of every channel for groups of images, in one pass.

Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507, section 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce
from torch import Tensor

from se_mm.utils import InputError, written_whole

from .gate_profile import LayerProfile, class_factor, class_selectivity, eta_squared, selectivity_by_chance
from .gates import Gates

ALL = 'all'
SUMS = ('count', 'sum', 'squares', 'low', 'high')


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
        """Of no image, for gates of this number of channels, dtype and device."""
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
        if gates.spread is not None:  # a map of one position has none
            spread = gates.spread.double().sum(0)
            self.spread = spread if self.spread is None else self.spread + spread

    def reduce(self) -> None:
        """Add the images of all processes, in place, in all processes."""
        for name in SUMS:
            all_reduce(getattr(self, name))
        all_reduce(self.minimum, 'min')
        all_reduce(self.maximum, 'max')
        if self.spread is not None:
            all_reduce(self.spread)

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

    Attributes:
        weights: :func:`se_mm.analysis.gates.weights_digest` of the network, None if no network is known.
    """

    def __init__(
        self,
        groupings: Mapping[str, Sequence[str]] | None = None,
        thresholds: tuple[float, float] = (0.1, 0.9),
        paths: Mapping[str, str] | None = None,
    ) -> None:
        self.thresholds, self.paths = thresholds, dict(paths or {})
        self.weights: str | None = None
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
            InputError: a layer has gates of another number of images than there are members, or than other layers
                have; or a group does not exist.
        """
        images = len(members) if members is not None else min((len(found.mean) for found in gates.values()), default=0)
        for group in {group for groups in members or () for group in groups}:
            if not 0 < group < len(self.groups):
                raise InputError(
                    f'an image is in group {group}: the groups have the numbers 1 to {len(self.groups) - 1}'
                )
        for name, found in gates.items():
            number = len(found.mean)
            if number != images:
                raise InputError(
                    f'{name} has gates of {number} images, but {images} images came: a layer that runs several '
                    'times for an image has no gates of the image'
                )
            of_each = [()] * number if members is None else members
            pairs = [(i, group) for i, groups in enumerate(of_each) for group in (0, *set(groups))]
            places, groups = torch.tensor(pairs, device=found.mean.device).unbind(1)
            if name not in self.layers:
                self.layers[name] = Moments.empty(len(self.groups), found)
            self.layers[name].add(found, places, groups, self.thresholds)

    def reduce(self) -> None:
        """Add what all processes have seen with equal groups, in place, in all processes."""
        device = next((moments.sum.device for moments in self.layers.values()), None)
        mine = {
            name: (moments.sum.shape[1], moments.minimum.dtype, moments.spread is not None)
            for name, moments in self.layers.items()
        }
        everyone = all_gather_object(mine)
        for name in dict.fromkeys(name for found in everyone for name in found):
            channels, dtype, _ = next(found[name] for found in everyone if name in found)
            if name not in self.layers:  # this process had no images
                none = torch.empty(0, channels, dtype=dtype, device=device)
                self.layers[name] = Moments.empty(len(self.groups), Gates(none, None))
            moments = self.layers[name]
            if moments.spread is None and any(found[name][2] for found in everyone if name in found):
                moments.spread = torch.zeros_like(moments.sum[0])
            moments.reduce()

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
        if self.weights:
            found['weights'] = np.array(self.weights)
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
            selectivity_by_chance=selectivity_by_chance(moments, classes.places) if classes else None,
            class_factor=class_factor(moments.mean[classes.places]) if classes else None,
            high=float(moments.high[0].sum()) / values,
            low=float(moments.low[0].sum()) / values,
            dead=float(((moments.maximum[0] < low) & (moments.minimum[0] > -low)).double().mean()),
            from_identity=float(np.sqrt((variance + (mean - 1) ** 2).mean())),
            from_mean=float(np.sqrt(variance.mean())),
            position_spread=None if moments.spread is None else float(moments.spread.mean()) / float(moments.count[0]),
        )

"""Gates that stand in place of what SE layers compute: one, the mean over the data, and those of other images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

ONE, MEAN, SHUFFLED = REPLACEMENTS = ('one', 'mean', 'shuffled')
BANK = 512  # images whose gates are kept to be given to other images


class Bank:
    """Gates of some images, to be given to other images.

    Args:
        images: numbers of the images whose gates are kept.
    """

    def __init__(self, images: Iterable[int]) -> None:
        self.images = frozenset(images)
        self.kept: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def drawn(cls, images: Sequence[int], seed: int = 0) -> Bank:
        """Of at most ``BANK`` images, drawn at random."""
        return cls(np.random.default_rng(seed).permutation(images)[:BANK].tolist())

    def add(self, gates: Mapping, numbers: Sequence[int]) -> None:
        """Keep gates, of :meth:`GateRecorder.take`, of those of the images that are wanted.

        Args:
            gates: of N images; of a layer with a gate for each position, the mean over positions is kept.
            numbers: of the N images.
        """
        for place, number in enumerate(numbers):
            if number in self.images:
                self.kept[number] = {name: found.mean[place].cpu() for name, found in gates.items()}

    def merge(self, others: Iterable[Bank]) -> None:
        """Take what other processes have kept."""
        for other in others:
            self.kept.update(other.kept)


class Replacer:
    """Makes the functions that replace gates.

    Args:
        means: (C,) of each layer.
        bank: gates of at least two images.
        seed: of the shuffling.
    """

    def __init__(self, means: Mapping[str, Tensor], bank: Bank, seed: int = 0) -> None:
        self.means, self.seed = means, seed
        self.images = sorted(bank.kept)  # whichever process kept them
        self.banks = {name: torch.stack([bank.kept[image][name] for image in self.images]) for name in means}
        self.others: list[int] = []

    def batch(self, numbers: Sequence[int]) -> None:
        """Choose another image for each image of the next batch, whatever the batches are.

        Args:
            numbers: of the images of the batch.
        """
        self.others = [self._other(number) for number in numbers]

    def _other(self, number: int) -> int:
        """Place in the bank of a random image that is not the given one."""
        generator = np.random.default_rng([self.seed, number])
        if number not in self.images:
            return int(generator.integers(len(self.images)))
        own = self.images.index(number)
        return (own + int(generator.integers(1, len(self.images)))) % len(self.images)

    def __call__(self, name: str, replacement: str) -> Callable[[Tensor], Tensor]:
        """The function for a layer and one of ``REPLACEMENTS``."""
        if replacement == ONE:
            return torch.ones_like
        gates = self.means[name] if replacement == MEAN else self.banks[name][self.others]
        return lambda output: _like(gates, output)


def _like(gates: Tensor, output: Tensor) -> Tensor:
    """Gates (N, C) or (C,) in the shape and dtype of what they replace."""
    gates = gates.to(output).expand(output.shape[:2])
    return gates.reshape(*output.shape[:2], *[1] * (output.dim() - 2)).expand_as(output)

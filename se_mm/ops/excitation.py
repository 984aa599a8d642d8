"""The excitation of an SE layer as parameters, for the kernels that compute it together with the tail."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Excitation(NamedTuple):
    """Gates factor * sigmoid(W2 relu(W1 z + b1) + b2) of z (N, C); a gate for :func:`se_mm.ops.se_tail`.

    With the backend 'triton' one kernel computes the gates, and two kernels their gradients, if there are both biases
    or none.

    Squeeze-and-Excitation Networks, Hu et al., https://arxiv.org/abs/1709.01507, equation 3.
    """

    w1: Tensor  # (R, C), R the squeezed width
    b1: Tensor | None  # (R,), None if there are no biases
    w2: Tensor  # (C, R)
    b2: Tensor | None  # (C,)
    factor: float = 1.0
    observers: tuple[Callable[[Tensor], object], ...] = ()  # are called with the gates (N, C), without the factor

    @property
    def has_kernels(self) -> bool:
        """Whether the kernels take it."""
        return (self.b1 is None) == (self.b2 is None)

    def __call__(self, z: Tensor) -> Tensor:
        """Gates for z, both (N, C)."""
        gates = torch.sigmoid(F.linear(F.relu(F.linear(z, self.w1, self.b1)), self.w2, self.b2))
        for observe in self.observers:
            observe(gates)
        return gates if self.factor == 1 else self.factor * gates

    def show(self, gates: Tensor) -> None:
        """Call the observers with gates that a kernel has computed, factor included."""
        if self.observers:
            own = gates if self.factor == 1 else gates / self.factor
            for observe in self.observers:
                observe(own)

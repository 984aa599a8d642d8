"""Deployed networks: what became of their units, how far their features moved, and the config that loads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from se_mm.models.base import Backbone
from se_mm.models.deploy import FOLDED, Deployed


class Unit(NamedTuple):
    """What became of a unit of a network.

    Attributes:
        name: of its module, 'stem' for what comes before the stages.
        norms: number of its norms.
        folded: number of its norms that are folded into convolutions.
        se: what became of its SE layer, None if it had none.
        why: why norms or SE stay as they are.
    """

    name: str
    norms: int
    folded: int
    se: str | None
    why: str


def by_unit(report: Iterable[Deployed], stages: Sequence[str]) -> list[Unit]:
    """What :meth:`Backbone.switch_to_deploy` returned, a row a unit.

    Args:
        report: of a backbone.
        stages: names of its stages.
    """
    units: dict[str, list[Deployed]] = {}
    for row in report:
        stage, _, rest = row.path.partition('.')
        name = f'{stage}.{rest.partition(".")[0]}' if stage in stages else 'stem'
        units.setdefault(name, []).append(row)
    rows = []
    for name, parts in sorted(units.items(), key=lambda unit: _place(unit[0], stages)):
        norms = [part for part in parts if part.kind == 'norm']
        se = next((part.done for part in parts if part.kind == 'SE'), None)
        why = '; '.join(dict.fromkeys(part.why for part in parts if part.why))
        rows.append(Unit(name, len(norms), sum(part.done == FOLDED for part in norms), se, why))
    return rows


def _place(name: str, stages: Sequence[str]) -> tuple[int, int]:
    stage, _, number = name.partition('.')
    return (stages.index(stage), int(number)) if stage in stages else (-1, 0)


@torch.no_grad()
def features(network: Backbone, images: Iterable[Tensor]) -> list[list[Tensor]]:
    """The maps of a network's stages for each batch of images (N, 3, H, W), or of regions for a shared head."""
    outputs = (network(batch) for batch in images)
    return [[output] if isinstance(output, Tensor) else list(output) for output in outputs]


def largest_difference(before: list[list[Tensor]], after: list[list[Tensor]]) -> float:
    """Largest difference of features, in the largest value of their stage."""
    stages = [pair for a, b in zip(before, after, strict=True) for pair in zip(a, b, strict=True)]
    return float(np.max([(a - b).abs().max().item() / a.abs().max().item() for a, b in stages]))  # NaN if one is

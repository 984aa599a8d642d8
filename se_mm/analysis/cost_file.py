"""What networks cost, as lines of a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_type_hints

from se_mm.utils import InputError, errors_name

from .cost import Quantiles


@dataclass(frozen=True, kw_only=True)
class Setting:
    """In what networks are compared.

    Attributes:
        part: of the benchmark.
        mode: ``'train'`` or ``'inference'``.
        batch: images.
        height, width: of the images, in pixels.
        depth: of the networks, in layers.
        dtype: ``'float32'``, ``'bfloat16'`` for autocast, or ``'int8'``.
        layout: of the images and weights in memory, ``'contiguous'`` or ``'channels_last'``.
        compiled: whether by torch.compile.
    """

    part: str
    mode: str
    batch: int
    height: int
    width: int
    depth: int
    dtype: str
    layout: str
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Cost(Setting):
    """What one network costs in one setting: a line of the file. None where it was not measured.

    Attributes:
        variant: name of the network in the benchmark, ``'plain'`` for what the others are divided by.
        forward_ms, backward_ms, step_ms: milliseconds.
        forward_ratio, backward_ratio, step_ratio: to the time of the plain network in the same round.
        stored_bytes, stored_ratio: stored activations, and their ratio to the plain network's.
        peak_bytes, peak_ratio: peak of a step on a GPU, above what stood before.
        gbytes_per_s: what the tail alone reads and writes, in 10^9 bytes a second.
        bandwidth_ratio: ``gbytes_per_s`` to that of a copy.
        remark: why the line has no numbers, or none that may be compared.
        device, threads, allocator, versions: of the machine.
    """

    variant: str
    forward_ms: Quantiles | None = None
    forward_ratio: Quantiles | None = None
    backward_ms: Quantiles | None = None
    backward_ratio: Quantiles | None = None
    step_ms: Quantiles | None = None
    step_ratio: Quantiles | None = None
    stored_bytes: int | None = None
    stored_ratio: float | None = None
    peak_bytes: int | None = None
    peak_ratio: float | None = None
    gbytes_per_s: float | None = None
    bandwidth_ratio: float | None = None
    remark: str = ''
    device: str
    threads: int
    allocator: str
    versions: str


FIELDS = {name: (get_args(hint) or (hint,))[0] for name, hint in get_type_hints(Cost).items()}  # types without None


def _columns(name: str) -> list[str]:
    return [f'{name}_{p}' for p in Quantiles._fields] if FIELDS[name] is Quantiles else [name]


COLUMNS = [column for name in FIELDS for column in _columns(name)]
OLD_COLUMNS = dict(kept_bytes='stored_bytes', kept_ratio='stored_ratio')  # of files that se_mm 0.1.0 wrote


@contextmanager
def cost_writer(path: Path) -> Iterator[Callable[[Cost], None]]:
    """A function that adds a line to a CSV file, which gets its name when the block ends.

    A run that breaks off leaves its lines in ``.NAME`` beside the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}')
    with errors_name(path), unfinished.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)

        def write(cost: Cost) -> None:
            writer.writerow(_texts(cost))
            file.flush()

        yield write
    os.replace(unfinished, path)


def read_costs(path: Path) -> list[Cost]:
    """The lines of a CSV file.

    Raises:
        InputError: there is no such file, or it is not one that :func:`cost_writer` wrote.
    """
    if not path.is_file():
        raise InputError(f'{path} not found: give a CSV file that tools/benchmark.py wrote')
    with path.open(newline='') as file:
        try:
            return _parse(list(csv.reader(file)))
        except (ValueError, csv.Error) as error:
            raise InputError(f'{path} is not a CSV file of tools/benchmark.py: {error}') from error


def _parse(lines: list[list[str]]) -> list[Cost]:
    if len(lines) < 2:
        raise ValueError('it has no lines of numbers')
    header = [OLD_COLUMNS.get(name, name) for name in lines[0]]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(f'it has no column {missing[0]}')
    return [_cost(dict(zip(header, line, strict=True))) for line in lines[1:]]


def _texts(cost: Cost) -> Iterator[object]:
    for name, kind in FIELDS.items():
        value = getattr(cost, name)
        if kind is Quantiles:
            yield from value or [''] * len(Quantiles._fields)
        else:
            yield '' if value is None else value


def _cost(texts: dict[str, str]) -> Cost:
    values = {}
    for name, kind in FIELDS.items():
        parts = [texts[column] for column in _columns(name)]
        if kind is Quantiles:
            values[name] = Quantiles(*map(float, parts)) if all(parts) else None
        elif kind is bool:
            values[name] = parts[0] == 'True'
        else:
            values[name] = kind(parts[0]) if parts[0] or kind is str else None
    return Cost(**values)

"""What a training and its evaluation leave in a work dir: the config, the curves and the numbers."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from se_mm.utils import InputError
from se_mm.utils.config import load_config

TIMESTAMP = re.compile(r'\d{8}_\d{6}')


class Axis(NamedTuple):
    """What a curve shows, and the unit of its positions: 'epoch' or 'iteration'."""

    quantity: str
    unit: str


@dataclass(frozen=True)
class Run:
    """A work dir.

    Attributes:
        folder: the work dir.
        name: name of its config.
        config: file that holds the config as it was run: of the latest training, else of the latest evaluation.
        evaluation: content of ``metrics.json``, None if there is none.
        training: what MMEngine logged while training, by iteration; empty if it was not trained there.
        validations: what MMEngine logged after validations, by epoch or, without epochs, by iteration.
    """

    folder: Path
    name: str
    config: Path
    evaluation: dict | None
    training: dict[int, dict]
    validations: dict[int, dict]

    @cached_property
    def cfg(self) -> Config:
        """The config as it was run."""
        return load_config(self.config, work_dir=str(self.folder))

    @cached_property
    def curves(self) -> dict[Axis, dict[float, float]]:
        """Training loss and validation results: values by position."""
        curves = defaultdict(dict)
        epoch_length = max((i / entry['epoch'] for i, entry in self.training.items() if entry.get('epoch')), default=0)
        unit = 'epoch' if epoch_length else 'iteration'
        for iteration, entry in self.training.items():
            if 'loss' in entry:
                curves[Axis('training loss', unit)][iteration / (epoch_length or 1)] = entry['loss']
        for position, entry in self.validations.items():
            for quantity, value in _validation_results(entry):
                curves[Axis(quantity, unit)][position] = value
        return dict(curves)

    @cached_property
    def seconds(self) -> float | None:
        """Time of all training steps, None if it was not logged."""
        total, before = 0.0, 0
        for iteration, entry in sorted(self.training.items()):
            total += (iteration - before) * entry.get('time', 0)  # the mean of the last steps
            before = iteration
        return total or None


def find_work_dirs(pattern: str) -> list[Path]:
    """Work dirs that a name stands for: itself, or those inside it; ``*``, ``?`` and ``[...]`` match parts of names.

    Raises:
        InputError: there are none.
    """
    folders = [Path(pattern)] if Path(pattern).is_dir() else sorted(map(Path, glob.glob(pattern)))
    found = []
    for folder in filter(Path.is_dir, folders):
        if _is_work_dir(folder):
            found.append(folder)
        else:
            inside = f'{glob.escape(str(folder))}/**/'  # glob follows links, Path.rglob does not
            marks = [*glob.glob(f'{inside}metrics.json', recursive=True)]
            marks += map(os.path.dirname, glob.glob(f'{inside}vis_data', recursive=True))
            places = {Path(mark).parent for mark in marks}
            found += sorted(place for place in places if _is_work_dir(place))
    if not found:
        raise InputError(
            f'{pattern}: there is no work dir of MMEngine, a folder with a config and logs or metrics.json'
        )
    return found


def _is_work_dir(folder: Path) -> bool:
    return (folder / 'metrics.json').is_file() or any(folder.glob('*/vis_data'))


def read_run(folder: Path) -> Run:
    """Read a work dir.

    Raises:
        InputError: there is no config, there are several, or there is neither a curve nor an evaluation.
    """
    evaluation = read_evaluation(folder)
    training, validations = _read_logs(folder)
    if evaluation is None and not training:
        raise InputError(
            f'{folder} has neither curves (vis_data/scalars.json, written by LocalVisBackend) nor metrics.json '
            '(written by tools/test.py): train or evaluate first'
        )
    trained = sorted(path.with_name('config.py') for path in folder.glob('*/vis_data/scalars.json'))
    stored = [*sorted(folder.glob('*.py')), *sorted(folder.glob('*/vis_data/config.py')), *trained]
    stored = [path for path in stored if path.is_file()]
    if not stored:
        raise InputError(f'{folder} has no config: MMEngine stores one in every work dir')
    return Run(folder, config_name(folder, evaluation), stored[-1], evaluation, training, validations)


def config_name(folder: Path, evaluation: dict | None = None) -> str:
    """Name of the config that a work dir belongs to, without '.py'.

    Raises:
        InputError: runs of several configs lie there, and no evaluation tells which one is meant.
    """
    if evaluation is not None:
        return Path(evaluation['config']).stem
    names = [path.stem for path in sorted(folder.glob('*.py')) if not TIMESTAMP.fullmatch(path.stem)]
    if len(names) > 1:
        raise InputError(f'{folder} holds runs of several configs, {", ".join(names)}: give each a work dir of its own')
    return names[0] if names else folder.resolve().name


def read_evaluation(folder: Path) -> dict | None:
    """Content of ``metrics.json``, None if there is none.

    Raises:
        InputError: the file is not one that tools/test.py wrote.
    """
    path = folder / 'metrics.json'
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        content['metrics'].items(), Path(content['config'])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path} is not a file that tools/test.py wrote: {error!r}') from error
    return content


def _read_logs(folder: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """What trainings logged: by iteration, and after validations. A later training replaces an earlier one from
    its first iteration on, which is how a run that was interrupted continues."""
    training, validations, places = {}, {}, {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        entries = _read_lines(path)
        first = min((entry['iter'] for entry in entries if 'iter' in entry), default=None)
        if first is not None:
            training = {i: entry for i, entry in training.items() if i < first}
            validations = {i: entry for i, entry in validations.items() if places[i] < first}
        iteration = max(training, default=0)
        for entry in entries:
            if 'iter' in entry:
                iteration = entry['iter']
                training[iteration] = entry
            elif 'step' in entry:
                by_epoch = 'epoch' in training.get(iteration, {})
                position = entry['step'] if by_epoch else iteration
                validations[position], places[position] = entry, iteration
    return training, validations


def _read_lines(path: Path) -> list[dict]:
    lines = path.read_text().splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):  # the last line of a run that was killed may be half a line
                raise InputError(f'{path}, line {number}: this is not a line that MMEngine wrote: {error}') from error
    return entries


def _validation_results(entry: dict) -> list[tuple[str, float]]:
    """Quantity and value of the results that are known, else of the first result."""
    results = {k: v for k, v in entry.items() if k not in ('data_time', 'time', 'step') and isinstance(v, int | float)}
    known = []
    for name, value in results.items():
        end = name.rpartition('/')[2]
        if end in ('bbox_mAP', 'segm_mAP', 'mAP') and value >= 0:
            percent = value if name.startswith('multi-label') else 100 * value
            known.append((dict(bbox_mAP='AP, %', segm_mAP='AP of masks, %', mAP='mAP, %')[end], percent))
        elif end == 'top1':
            known.append(('top-1 error, %', value if 'error' in name else 100 - value))
    return known or list(results.items())[:1]

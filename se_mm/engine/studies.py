"""Studies: configs trained with several seeds, and what is stored of every run."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import yaml

from se_mm.analysis.runs import read_run
from se_mm.utils import InputError, write_json
from se_mm.utils.config import load_config

ROOT = Path(__file__).resolve().parents[2]
STARTS = 'starts.json'


@dataclass(frozen=True)
class Study:
    """Content of a study file.

    Attributes:
        path: the file; its name without '.yml' is that of the study.
        groups: configs, as paths, the seeds for each of them, and options of tools/train.py alone.
        processes: of a run.
        options: of tools/train.py and tools/test.py.
        title: for the page of results.
        about: Markdown text for the page of results.
        comparisons: names of two configs each, the baseline first.
    """

    path: Path
    groups: list[tuple[list[Path], list[int], tuple[str, ...]]]
    processes: int = 1
    options: tuple[str, ...] = ()
    title: str = ''
    about: str = ''
    comparisons: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return self.path.stem

    def runs(self) -> list[StudyRun]:
        """All runs in their order: every config of a group with a seed, then with the next seed."""
        return [
            StudyRun(self, config, seed, train_options)
            for configs, seeds, train_options in self.groups
            for seed in seeds
            for config in configs
        ]

    def configs(self) -> list[Path]:
        """All configs, each once, in the order of their first runs."""
        return list(dict.fromkeys(run.config for run in self.runs()))


@dataclass(frozen=True)
class StudyRun:
    """A config of a study with a seed."""

    study: Study
    config: Path
    seed: int
    train_options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f'{self.config.stem}_seed{self.seed}'

    def result(self, results: Path) -> Path:
        """The file of its result in the folder of all results."""
        return results / self.study.name / f'{self.name}.json'

    def command(self) -> str:
        """What trains it, from the folder of the project."""
        config = self.config.relative_to(ROOT) if self.config.is_relative_to(ROOT) else self.config
        start = 'python tools/train.py {}' if self.study.processes == 1 else 'tools/dist_train.sh {} {}'
        options = [*self.train_options, *self.arguments()]
        return ' '.join([start.format(config, self.study.processes), *options])

    def arguments(self) -> list[str]:
        """Options of tools/train.py and tools/test.py."""
        return [*self.study.options, '--cfg-options', f'randomness.seed={self.seed}']

    @cached_property
    def config_hash(self) -> str:
        """SHA-256 of all values of the config, those of its base configs included."""
        cfg = load_config(self.config, work_dir='').to_dict()
        return hashlib.sha256(json.dumps(cfg, sort_keys=True, default=str).encode()).hexdigest()

    def is_finished(self, results: Path) -> bool:
        """Whether its result is stored.

        Raises:
            InputError: the stored result is of another version of the config, or was trained with other options.
        """
        path = self.result(results)
        if not path.is_file():
            return False
        self._check_start(json.loads(path.read_text()), f'{path} and the work dir')
        return True

    def starts(self, folder: Path) -> list[dict]:
        """When and with which files it was started in a work dir, see :func:`remember_start`.

        Raises:
            InputError: it was another version of the config, or other options.
        """
        path = folder / STARTS
        starts = json.loads(path.read_text()) if path.is_file() else []
        for start in starts:
            self._check_start(start, str(folder))
        return starts

    def _check_start(self, start: dict, place: str) -> None:
        if start['config_sha256'] != self.config_hash:
            raise InputError(
                f'{place}: this is a run of another version of {self.config}: delete it to run it from the start, or '
                'take the config back to what it was'
            )
        before, now = (command.partition(f'{self.config.name} ')[2] for command in (start['command'], self.command()))
        if before != now:
            raise InputError(
                f'{place}: this is a run with the options {before}, and {self.study.path} has {now}: delete it to run '
                'it from the start, or take the study file back to what it was'
            )


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        InputError: there is no such file, or something in it is missing or wrong.
    """
    path = path.resolve()
    if not path.is_file():
        raise InputError(f'study {path} does not exist')
    try:
        content = yaml.safe_load(path.read_text())
        train_options, groups = content.pop('train_options', ()), []
        for group in content.pop('runs'):
            configs = [path.parent / f'{name}.py' for name in group.pop('configs')]
            seeds = [int(seed) for seed in group.pop('seeds')]
            groups.append((configs, seeds, tuple(map(str, group.pop('train_options', train_options)))))
            if group:
                raise ValueError(f'unknown keys {", ".join(group)} in runs')
        study = Study(
            path=path,
            groups=groups,
            processes=int(content.pop('processes', 1)),
            options=tuple(str(part) for part in content.pop('options', ())),
            title=str(content.pop('title', None) or path.stem),
            about=str(content.pop('about', None) or ''),
            comparisons=tuple((str(first), str(second)) for first, second in content.pop('comparisons', ())),
        )
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'study {path} cannot be read ({error!r}): it has runs, a list of dicts with configs and seeds'
        ) from error
    if content:
        raise InputError(
            f'study {path} has unknown keys {", ".join(content)}: it has title, about, runs, comparisons, processes, '
            'options and train_options'
        )
    for config in {config for configs, *_ in groups for config in configs}:
        if not config.is_file():
            raise InputError(f'study {path} names a config {config.stem}, but there is no {config}')
    known = [config.stem for config in study.configs()]
    if unknown := [name for pair in study.comparisons for name in pair if name not in known]:
        raise InputError(
            f'study {path}: comparisons name {unknown[0]}, which has no runs; choose of {", ".join(known)}'
        )
    names = [run.name for run in study.runs()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f'study {path}: {twice[0]} is there twice, leave one out')
    return study


def commit() -> str:
    """The commit of the project's files, with '-dirty' if some have been changed since; '' without git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + ('-dirty' if git('status', '--porcelain', '--untracked-files=no') else '')
    except (OSError, subprocess.CalledProcessError):
        return ''


def remember_start(run: StudyRun, folder: Path) -> None:
    """Add to a run's work dir when and with which files it starts or goes on.

    Raises:
        InputError: it was started with another version of the config, or with other options.
    """
    date = datetime.now(timezone.utc).isoformat(timespec='seconds')
    start = dict(date=date, commit=commit(), config_sha256=run.config_hash, command=run.command())
    write_json(folder / STARTS, [*run.starts(folder), start])


def write_result(run: StudyRun, folder: Path, results: Path) -> Path:
    """Store what came out of a run, from its work dir, and return the file."""
    trained, starts = read_run(folder), run.starts(folder)
    evaluation = trained.evaluation
    content = dict(
        study=run.study.name,
        config=run.config.stem,
        seed=run.seed,
        metrics=evaluation['metrics'],
        hours=round((trained.seconds or 0) / 3600, 3),
        config_sha256=starts[0]['config_sha256'],
        starts=[{key: start[key] for key in ('date', 'commit')} for start in starts],
        finished=evaluation['date'],
        checkpoint_sha256=evaluation['checkpoint']['sha256'],
        dataset={key: value for key, value in evaluation['dataset'].items() if key != 'data_root'},
        command=run.command(),
        processes=evaluation['processes'],
        device=evaluation['device'],
        versions=evaluation['versions'],
        curves={
            axis.quantity: dict(unit=axis.unit, points=[[round(x, 3), float(f'{y:.5g}')] for x, y in curve.items()])
            for axis, curve in trained.curves.items()
        },
    )
    path = run.result(results)
    write_json(path, content)
    return path

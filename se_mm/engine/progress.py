"""Progress of long work on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.dist import is_main_process
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A function that advances a bar with an estimate of the time that is left; the main process shows the bar.

    Args:
        what: the work, in a word.
        total: number of calls until the work is done.
    """
    columns = TextColumn('{task.description}'), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not is_main_process()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)

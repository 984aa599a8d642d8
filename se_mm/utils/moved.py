"""Names that have moved keep working and say where they went."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module


def moved_names(module: str, places: dict[str, str], gone: dict[str, str] | None = None) -> Callable[[str], object]:
    """``__getattr__`` of a module for the names that it no longer has.

    Args:
        module: its name.
        places: where each name is now, with the module before the last dot.
        gone: of each name without a successor, what to use instead.
    """

    def find(name: str) -> object:
        if name in (gone or {}):
            raise AttributeError(f'{module}.{name} is gone: {gone[name]}')
        if name not in places:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        warnings.warn(f'{module}.{name} is now {places[name]}', FutureWarning, stacklevel=2)
        place, _, attribute = places[name].rpartition('.')
        return getattr(import_module(place), attribute)

    return find

"""A backend of MMEngine that writes files whole or not at all.

MMEngine's own opens a checkpoint under its final name. A process that ends meanwhile leaves half a checkpoint, and a
process that has mapped the old one into memory dies. Importing this module puts :class:`WholeFileBackend` in the place
of MMEngine's backend for local files::

    custom_imports = dict(imports=['se_mm.engine.whole_files'])  # in a config, for the tools of other packages
"""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from se_mm.utils import written_whole


@register_backend('local', force=True, prefixes='')
class WholeFileBackend(LocalBackend):
    """Local files, written beside and renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes. The file is on the disk when it gets its name.

        Raises:
            OSError: the bytes cannot be written; what the file held before is still there.
        """
        with written_whole(filepath) as partial, partial.open('wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write a text, as :meth:`put` does."""
        self.put(obj.encode(encoding), filepath)

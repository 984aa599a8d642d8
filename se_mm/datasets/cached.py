"""Images that are decoded once."""

from __future__ import annotations

from mmcv.transforms import LoadImageFromFile

from se_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImageOnce(LoadImageFromFile):
    """MMCV's ``LoadImageFromFile`` that keeps every image in memory: from the second epoch on, no file is read.

    For data sets that fit into memory, uncompressed; every worker that loads images holds those that it has loaded.

    Args:
        **kwargs: of ``LoadImageFromFile``.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self._loaded: dict[str, dict] = {}

    def transform(self, results: dict) -> dict | None:
        """Add ``img``, (H, W, C) or (H, W), ``img_shape`` and ``ori_shape`` of the file ``img_path``."""
        path = results['img_path']
        if path not in self._loaded:
            if super().transform(found := dict(img_path=path)) is None:
                return None
            self._loaded[path] = found
        found = self._loaded[path]
        results.update(found, img=found['img'].copy())  # transforms may write into it
        return results

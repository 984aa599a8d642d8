"""Crops of the corners of images."""

from __future__ import annotations

from mmcv.transforms import BaseTransform

from se_mm.registry import TRANSFORMS

CORNERS = ('top left', 'top right', 'bottom left', 'bottom right')


@TRANSFORMS.register_module()
class CornerCrop(BaseTransform):
    """Crop one corner of an image.

    Args:
        crop_size: width and height, or one number for both, as of MMCV's ``CenterCrop``.
        corner: one of ``CORNERS``.

    Raises:
        ValueError: there is no such corner.
    """

    def __init__(self, crop_size: int | tuple[int, int], corner: str) -> None:
        if corner not in CORNERS:
            raise ValueError(f'corner={corner!r}: choose one of {", ".join(CORNERS)}')
        self.width, self.height = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self.vertical, self.horizontal = corner.split()

    def transform(self, results: dict) -> dict:
        """Crop ``img``, (H, W, C) or (H, W), and set ``img_shape``.

        Raises:
            ValueError: the image is smaller than the crop.
        """
        height, width = results['img'].shape[:2]
        if height < self.height or width < self.width:
            raise ValueError(
                f'{results.get("img_path", "image")} of {width}x{height} is smaller than crop_size '
                f'{self.width}x{self.height}: resize images before they are cropped'
            )
        top = 0 if self.vertical == 'top' else height - self.height
        left = 0 if self.horizontal == 'left' else width - self.width
        results['img'] = results['img'][top : top + self.height, left : left + self.width]
        results['img_shape'] = (self.height, self.width)
        return results

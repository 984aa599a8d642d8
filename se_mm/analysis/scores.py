"""Numbers by which networks are judged, for any part of the images that were evaluated."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_mm.evaluation.coco import average_precision, evaluate_images


class Score(Protocol):
    """A number by which a network is judged, higher is better or lower is better.

    Attributes:
        name: such as 'top-1 error'.
        unit: such as '%'.
        sign: 1 if higher is worse, -1 if higher is better.
    """

    name: str
    unit: str
    sign: int

    def keep(self, outputs: object) -> list:
        """What has to be remembered of a batch's outputs, an entry for each image."""

    def value(self, kept: Sequence, images: np.ndarray) -> float:
        """The number for some of the images, given by their places in ``kept``."""

    def finest(self, kept: Sequence) -> float:
        """The least difference that can be told from none: if nothing changes for n cases, up to 3 / n of all cases
        may change, with a confidence of 95 % (the rule of three)."""

    def is_chance(self, value: float) -> bool:
        """Whether a value is no better than guessing."""


class TopOneError:
    """Share of wrongly classified images, in percent. Outputs are data samples of mmpretrain.

    Args:
        classes: number of classes.
    """

    name, unit, sign = 'top-1 error', 'points', 1

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def keep(self, outputs: Iterable) -> list[bool]:
        """Whether each image is wrong: its predicted label is none of its true labels."""
        return [bool((sample.gt_label != sample.pred_label.to(sample.gt_label.device)).all()) for sample in outputs]

    def value(self, kept: Sequence[bool], images: np.ndarray) -> float:
        """In percent."""
        return float(100 * np.asarray(kept)[images].mean())

    def finest(self, kept: Sequence[bool]) -> float:
        """A case is an image."""
        return 300 / len(kept)

    def is_chance(self, value: float) -> bool:
        """Guessing is wrong for all classes but one."""
        return value >= 100 * (1 - 1 / self.classes)


class Boxes(NamedTuple):
    """What a detector finds in an image.

    Attributes:
        image_id: of the annotations.
        found: (n, 6), x1, y1, x2, y2 in pixels, score and label.
    """

    image_id: int
    found: np.ndarray


class BoxAP:
    """COCO's AP of boxes, in percent. Outputs are data samples of mmdet.

    Args:
        ann_file: annotations in COCO format.
        category_ids: category of each label.
    """

    name, unit, sign = 'AP', 'points', -1

    def __init__(self, ann_file: str, category_ids: Sequence[int]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints how long everything takes
            self.truth = COCO(ann_file)
        self.category_ids = list(category_ids)
        self._evaluated: dict[int, COCOeval] = {}  # of the two latest lists: all pairs of boxes are compared once

    def keep(self, outputs: Iterable) -> list[Boxes]:
        """The boxes of each image."""
        kept = []
        for sample in outputs:
            found = sample.pred_instances
            columns = (found.bboxes, found.scores[:, None], found.labels[:, None].to(found.scores))
            array = np.concatenate([column.cpu().numpy().astype(np.float32) for column in columns], 1)
            kept.append(Boxes(sample.img_id, array))
        return kept

    def value(self, kept: Sequence[Boxes], images: np.ndarray) -> float:
        """In percent; 0 where there is nothing to find."""
        if id(kept) not in self._evaluated:
            while len(self._evaluated) > 1:
                del self._evaluated[list(self._evaluated)[1]]  # the first is what all others are compared with
            predictions = [prediction for boxes in kept for prediction in self._predictions(boxes)]
            ids = [boxes.image_id for boxes in kept]
            with contextlib.redirect_stdout(io.StringIO()):
                self._evaluated[id(kept)] = evaluate_images(
                    self.truth, predictions, category_ids=self.category_ids, image_ids=ids
                )
        with contextlib.redirect_stdout(io.StringIO()):
            found = average_precision(self._evaluated[id(kept)], [kept[image].image_id for image in images])
        return 100 * (found or 0.0)

    def _predictions(self, boxes: Boxes) -> Iterable[dict]:
        for x1, y1, x2, y2, score, label in boxes.found.tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            yield dict(image_id=boxes.image_id, category_id=self.category_ids[int(label)], bbox=box, score=score)

    def finest(self, kept: Sequence[Boxes]) -> float:
        """A case is an object of the annotations."""
        ids = [boxes.image_id for boxes in kept]
        return 300 / max(len(self.truth.getAnnIds(imgIds=ids, catIds=self.category_ids, iscrowd=False)), 1)

    def is_chance(self, value: float) -> bool:
        """Nothing is found."""
        return value < 0.1

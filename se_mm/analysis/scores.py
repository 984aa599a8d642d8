"""Numbers by which networks are judged, and what replaced gates do to them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from pycocotools.coco import COCO

from se_mm.evaluation.coco import average_precision, evaluate_images

from .intervals import jackknife, left_out, paired_difference


class Worth(NamedTuple):
    """What a replacement costs.

    Attributes:
        value: of the score with the replacement.
        loss: how much worse than with the network's own gates, in the unit of the score; below 0 is better.
        low, high: 95 % interval of ``loss``, from the images.
    """

    value: float
    loss: float
    low: float
    high: float


class Score(Protocol):
    """A number by which a network is judged.

    Attributes:
        name: such as 'top-1 error'.
        unit: of differences, such as 'points'.
    """

    name: str
    unit: str

    def keep(self, outputs: object) -> list:
        """What has to be remembered of a batch's outputs, an entry for each image."""

    def value(self, kept: Sequence) -> float:
        """The number."""

    def worth(self, kept: Sequence, own: Sequence) -> Worth:
        """The number for ``kept`` beside the number for ``own``, entries of the same images."""

    def is_chance(self, value: float) -> bool:
        """Whether a value is no better than guessing."""


class TopOneError:
    """Share of wrongly classified images, in percent. Outputs are data samples of mmpretrain.

    Intervals are those of :func:`paired_difference`.

    Args:
        chance: error in percent of the answer that is right most often.
    """

    name, unit = 'top-1 error', 'points'

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def keep(self, outputs: Iterable) -> list[bool]:
        """Whether each image is wrong: its predicted label is none of its true labels."""
        return [bool((sample.gt_label != sample.pred_label.to(sample.gt_label.device)).all()) for sample in outputs]

    def value(self, kept: Sequence[bool]) -> float:
        """In percent."""
        return float(100 * np.mean(kept))

    def worth(self, kept: Sequence[bool], own: Sequence[bool]) -> Worth:
        """In percent and points of percent."""
        wrong, wrong_before = np.array(kept), np.array(own)
        gained, lost = int((wrong & ~wrong_before).sum()), int((wrong_before & ~wrong).sum())
        low, high = paired_difference(gained, lost, len(wrong))
        return Worth(self.value(kept), 100 * (gained - lost) / len(wrong), 100 * low, 100 * high)

    def is_chance(self, value: float) -> bool:
        """No better than the most frequent label for every image."""
        return value >= self.chance


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

    Intervals are those of :func:`jackknife`. They reach at least as far as objects could change unseen: if nothing
    changes for the n objects of a class, up to 3 / n of all such objects may change, with a confidence of 95 %.

    Args:
        ann_file: annotations in COCO format.
        category_ids: category of each label.
    """

    name, unit = 'AP', 'points'

    def __init__(self, ann_file: str, category_ids: Sequence[int]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints how long everything takes
            self.truth = COCO(ann_file)
        self.category_ids = list(category_ids)
        self._latest: tuple[Sequence[Boxes], np.ndarray] | None = None  # own boxes of the network

    def keep(self, outputs: Iterable) -> list[Boxes]:
        """The boxes of each image."""
        kept = []
        for sample in outputs:
            found = sample.pred_instances
            columns = (found.bboxes, found.scores[:, None], found.labels[:, None].to(found.scores))
            array = np.concatenate([column.cpu().numpy().astype(np.float32) for column in columns], 1)
            kept.append(Boxes(sample.img_id, array))
        return kept

    def value(self, kept: Sequence[Boxes]) -> float:
        """In percent; 0 where there is nothing to find."""
        return float(self._values(kept, [np.arange(len(kept))])[0])

    def worth(self, kept: Sequence[Boxes], own: Sequence[Boxes]) -> Worth:
        """In percent and points of percent."""
        by_image = np.argsort([boxes.image_id for boxes in own], kind='stable')  # several processes have another order
        parts = [by_image, *(by_image[part] for part in left_out(len(own)))]
        if self._latest is None or self._latest[0] is not own:
            self._latest = own, self._values(own, parts)
        values = self._values(kept, parts)
        loss, *without = self._latest[1] - values
        low, high = jackknife(loss, np.array(without))
        unseen = self._unseen(own)
        return Worth(float(values[0]), float(loss), float(min(low, loss - unseen)), float(max(high, loss + unseen)))

    def _values(self, kept: Sequence[Boxes], parts: Sequence[np.ndarray]) -> np.ndarray:
        """AP of some of the images, for each part; all pairs of boxes are compared once."""
        predictions = [prediction for boxes in kept for prediction in self._predictions(boxes)]
        ids = np.array([boxes.image_id for boxes in kept])
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = evaluate_images(
                self.truth, predictions, category_ids=self.category_ids, image_ids=ids.tolist(), all_sizes=False
            )
            return 100 * np.array([average_precision(evaluation, ids[part].tolist()) or 0.0 for part in parts])

    def _predictions(self, boxes: Boxes) -> Iterable[dict]:
        for x1, y1, x2, y2, score, label in boxes.found.tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            yield dict(image_id=boxes.image_id, category_id=self.category_ids[int(label)], bbox=box, score=score)

    def _unseen(self, kept: Sequence[Boxes]) -> float:
        """Points of AP that objects could change without showing."""
        ids = [boxes.image_id for boxes in kept]
        numbers = [len(self.truth.getAnnIds(imgIds=ids, catIds=[c], iscrowd=False)) for c in self.category_ids]
        shares = [min(3 / number, 1) for number in numbers if number]
        return 100 * float(np.mean(shares)) if shares else 100.0

    def is_chance(self, value: float) -> bool:
        """Nothing is found."""
        return value < 0.1

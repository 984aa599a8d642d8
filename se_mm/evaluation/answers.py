"""A file of a classifier's answers, beside the file of boxes that an evaluation of a detector leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric

from se_mm.registry import METRICS
from se_mm.utils import written_whole


@METRICS.register_module()
class AnswerFile(BaseMetric):
    """Writes the five best categories of each image; gives no numbers.

    The file is a JSON list with one entry an image: ``index`` in the data set, ``truth`` (number of the
    true category), ``answers`` (numbers of categories, the best first) and their ``scores``.

    Args:
        path: the file.
        **kwargs: of MMEngine's ``BaseMetric``.
    """

    default_prefix = 'answers'

    def __init__(self, path: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.path = Path(path)

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Keep the best categories of samples with ``sample_idx``, ``pred_score`` and one ``gt_label``."""
        for sample in data_samples:
            if {'sample_idx', 'pred_score', 'gt_label'} <= set(sample) and sample['gt_label'].numel() == 1:
                scores, labels = torch.topk(sample['pred_score'].flatten(), min(5, sample['pred_score'].numel()))
                entry = dict(index=int(sample['sample_idx']), truth=int(sample['gt_label']))
                self.results.append(
                    dict(entry, answers=labels.tolist(), scores=[round(score, 4) for score in scores.tolist()])
                )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Write the file, if there is anything to write; the result is empty."""
        if results:
            with written_whole(self.path) as partial:
                partial.write_text(json.dumps(results))
        return {}

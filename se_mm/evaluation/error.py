"""Top-k error, the figure of the papers' classification tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric

from se_mm.registry import METRICS


@METRICS.register_module()
class TopKError(BaseMetric):
    """Percentage of images whose category is not among the k highest scores.

    With prefix 'scene_error' it gives the figures ``scene_error/top1`` and ``scene_error/top5``
    of Places365. With fewer than k categories, top-k error is 0.

    Args:
        topk: the values of k.
        **kwargs: of MMEngine's ``BaseMetric``.
    """

    default_prefix = 'error'

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs) -> None:
        super().__init__(**kwargs)
        self.topk = tuple(topk)

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Keep the rank of the true category (0 is best) of samples with ``pred_score`` and ``gt_label``."""
        for sample in data_samples:
            scores, label = sample['pred_score'].flatten(), int(sample['gt_label'])
            best = torch.topk(scores, min(max(self.topk), len(scores))).indices.tolist()
            self.results.append(best.index(label) if label in best else len(scores))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """``{'top1': ..., 'top5': ...}`` in percent."""
        return {f'top{k}': 100 * sum(rank >= k for rank in results) / len(results) for k in self.topk}

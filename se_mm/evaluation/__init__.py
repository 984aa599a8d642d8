"""Metrics. ``se_mm.evaluation.coco`` is imported where it is used: it needs pycocotools."""

from .error import TopKError

__all__ = ['TopKError']

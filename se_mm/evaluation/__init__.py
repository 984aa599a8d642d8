"""Metrics. ``se_mm.evaluation.coco`` is imported where it is used: it needs pycocotools."""

from .answers import AnswerFile
from .error import TopKError

__all__ = ['AnswerFile', 'TopKError']

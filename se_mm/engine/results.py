"""What an evaluation leaves behind: metrics.json and, for detection, predictions."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import get_local_path
from mmengine.runner import Runner

from se_mm.evaluation import AnswerFile
from se_mm.utils import installed_versions, sha256, write_json
from se_mm.utils.config import type_name


def kinds_to_save(cfg: Config) -> list[str]:
    """The kinds of predictions ('bbox', 'segm') whose files :func:`coco_metrics` evaluates.

    Evaluators of other kinds, or with settings that pycocotools' summary does not have, evaluate on their own.
    """
    evaluator = coco_evaluator(cfg)
    if evaluator is None:
        return []
    kinds = evaluator.get('metric', 'bbox')
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    changed = evaluator.get('format_only') or evaluator.get('iou_thrs') or not evaluator.get('ann_file')
    return kinds if not changed and set(kinds) <= {'bbox', 'segm'} else []


def save_predictions(runner: Runner, kinds: list[str], prefix: str) -> None:
    """Have evaluators write what a model says: ``<prefix>.bbox.json``, or a classifier's ``<prefix>.label.json``.

    The config, which MMEngine has written into the work dir, stays as it is: configs that inherit from that file must
    not write here.

    Args:
        runner: of the test.
        kinds: of :func:`kinds_to_save`. The COCO evaluator writes and does not evaluate, so that the numbers of
            :func:`coco_metrics` belong to the predictions that were saved.
        prefix: of the files.
    """
    metrics = runner.test_evaluator.metrics
    if runner.cfg.get('default_scope') == 'mmpretrain':
        metrics.append(AnswerFile(f'{prefix}.label.json'))
    for metric in metrics if kinds else ():
        if type(metric).__name__ == 'CocoMetric':
            metric.format_only, metric.outfile_prefix = True, prefix


def coco_evaluator(cfg: Config) -> dict | None:
    """The only CocoMetric among a config's test evaluators."""
    evaluators = cfg.get('test_evaluator')
    evaluators = evaluators if isinstance(evaluators, list | tuple) else [evaluators]
    found = [part for part in evaluators if isinstance(part, dict) and type_name(part) == 'CocoMetric']
    return found[0] if len(found) == 1 else None


def coco_metrics(runner: Runner, kinds: list[str], prefix: str, classwise: bool) -> dict:
    """COCO statistics of the saved predictions: ``bbox_AP`` and the other eleven, for each kind."""
    from se_mm.evaluation.coco import coco_stats

    evaluator = coco_evaluator(runner.cfg)
    metrics, classwise = {}, classwise or evaluator.get('classwise', False)
    with get_local_path(evaluator.ann_file, backend_args=evaluator.get('backend_args')) as ann_file:
        for kind in kinds:
            dataset = runner.test_dataloader.dataset
            category_ids = getattr(dataset, 'cat_ids', None)
            stats = coco_stats(ann_file, f'{prefix}.{kind}.json', kind, category_ids, classwise)
            metrics.update({f'{kind}_{name}': value for name, value in stats.items()})
    return metrics


def write_metrics(runner: Runner, checkpoint: str, metrics: dict, name: str = 'metrics.json') -> Path:
    """Write a file into the work dir: where the numbers come from, and the numbers."""
    cfg, dataset = runner.cfg, runner.test_dataloader.dataset
    metrics = {name: value.tolist() if hasattr(value, 'tolist') else value for name, value in metrics.items()}
    described = {k: cfg.test_dataloader.dataset.get(k) for k in ('data_root', 'ann_file', 'split')}
    described['type'] = type_name(cfg.test_dataloader.dataset)
    path = Path(runner.work_dir) / name
    write_json(
        path,
        dict(
            config=cfg.filename,
            checkpoint=dict(path=checkpoint, sha256=sha256(checkpoint) if Path(checkpoint).is_file() else None),
            dataset=dict({k: v for k, v in described.items() if v is not None}, images=len(dataset)),
            metrics=metrics,
            command=shlex.join(sys.argv),
            processes=runner.world_size,
            device=str(next(runner.model.parameters()).device.type),
            date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
            versions=installed_versions(),
        ),
    )
    return path

"""Drawing what all processes of an evaluation predict."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import Future, ProcessPoolExecutor
from types import SimpleNamespace

from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, VISUALIZERS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings


class DrawInChild(Hook):
    """Run a visualization hook of mmdet or mmpretrain in a child of each process of an evaluation.

    MMEngine's visualizers draw in the main process of a group only, so that a hook shows one process' images. A child
    belongs to no group.

    Args:
        cfg: config of the run, with the hook as ``default_hooks.visualization``, which is taken out.
    """

    def __init__(self, cfg: Config) -> None:
        self.setup = dict(
            scope=cfg.default_scope,
            imports=cfg.get('custom_imports'),
            visualizer={'name': 'drawing', **cfg.visualizer, 'vis_backends': []},
            hook=cfg.default_hooks.pop('visualization'),
        )
        self.samples = 0
        self.drawing: Future | None = None

    def before_test(self, runner: Runner) -> None:
        where = dict(work_dir=runner.work_dir, timestamp=runner.timestamp)
        self.child = ProcessPoolExecutor(
            1,
            multiprocessing.get_context('spawn'),
            _start,
            (self.setup, runner.test_dataloader.dataset.metainfo, where),
        )

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: list) -> None:
        samples = [sample.cpu() for sample in outputs]
        for sample in samples:
            if 'img_path' not in sample:  # mmpretrain would number each process' images alike
                sample.set_metainfo(dict(img_path=str(self.samples * get_world_size() + get_rank())))
            self.samples += 1
        self._finish()  # so that no more than one batch waits in memory
        self.drawing = self.child.submit(_draw, pickle.dumps((batch_idx, data_batch, samples)))

    def after_test(self, runner: Runner) -> None:
        self._finish()
        self.child.shutdown()

    def _finish(self) -> None:
        if self.drawing is not None:
            self.drawing.result()  # raises what drawing raised


def _start(setup: dict, metainfo: dict, where: dict) -> None:
    global _hook, _runner
    from se_mm import mmcv_ext  # noqa: F401  operators, where mmcv has none: in this process too, before mmdet

    if setup['imports']:
        import_modules_from_strings(**setup['imports'])
    init_default_scope(setup['scope'])
    VISUALIZERS.build(setup['visualizer']).dataset_meta = metainfo
    _hook, _runner = HOOKS.build(setup['hook']), SimpleNamespace(**where)


def _draw(batch: bytes) -> None:
    _hook.after_test_iter(_runner, *pickle.loads(batch))

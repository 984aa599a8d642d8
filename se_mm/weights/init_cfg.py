"""Pretrained weights in ``init_cfg``, as an initializer of MMEngine."""

from __future__ import annotations

import inspect
import logging

from mmengine.logging import print_log
from torch import nn

from se_mm.registry import WEIGHT_INITIALIZERS
from se_mm.utils import InputError

from .loading import LoadReport, load_backbone

ARGUMENTS = list(inspect.signature(load_backbone).parameters)[1:]


def loading_arguments(cfg: dict) -> dict:
    """Arguments of :func:`load_backbone` from an init_cfg; all weights are read to the CPU.

    Raises:
        InputError: no checkpoint, or a key that means nothing.
    """
    arguments = {key: value for key, value in cfg.items() if key not in ('type', 'map_location')}
    unknown = sorted(set(arguments) - set(ARGUMENTS))
    if unknown or 'checkpoint' not in arguments:
        raise InputError(
            f'init_cfg: {f"unknown {unknown[0]}" if unknown else "no checkpoint"}; it takes {", ".join(ARGUMENTS)}'
        )
    return arguments


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """What ``init_cfg=dict(type='Pretrained', checkpoint=...)`` means for the backbones here.

    Args:
        **cfg: arguments of :func:`load_backbone`.
    """

    def __init__(self, **cfg) -> None:
        self.cfg = cfg

    def __call__(self, backbone: nn.Module) -> LoadReport:
        """Load the weights and log what became of their tensors."""
        report = load_backbone(backbone, **loading_arguments(self.cfg))
        untrained = report.frozen or report.fresh_se and not report.identity
        print_log(str(report), logger='current', level=logging.WARNING if untrained else logging.INFO)
        return report

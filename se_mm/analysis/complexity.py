"""Parameters and multiply-adds of a config's model."""

from __future__ import annotations

import contextlib
from copy import deepcopy

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from se_mm.utils import InputError
from se_mm.utils.config import build_model, config_parts, leaf_datasets, type_name, use_scope

SMALL_IMAGES = ('CIFAR10', 'CIFAR100', 'SVHN')  # 32x32


def input_size(cfg: Config) -> tuple[int, int]:
    """Height and width of a test image, from the last transform of the config that sets a size.

    Images that are tested as they are have the size of the crops that training takes from them.
    """
    shape = (224, 224)
    for dataset in leaf_datasets((cfg.get('train_dataloader') or {}).get('dataset')):
        for _, transform in config_parts(dataset.get('pipeline'), 'pipeline'):
            if type_name(transform) == 'RandomCrop' and isinstance(size := transform.get('crop_size'), int):
                shape = (size, size)
    for dataset in leaf_datasets((cfg.get('test_dataloader') or {}).get('dataset')):
        if type_name(dataset) in SMALL_IMAGES:
            shape = (32, 32)
        for _, transform in config_parts(dataset.get('pipeline'), 'pipeline'):
            size = transform.get('crop_size') or transform.get('scale')
            if type_name(transform) == 'CenterCrop':
                shape = (size, size) if isinstance(size, int) else tuple(size)
            elif type_name(transform) in ('Resize', 'FixScaleResize') and isinstance(size, list | tuple):
                shape = (min(size), max(size))
    return shape


def complexity(cfg: Config, shape: tuple[int, int] | None = None) -> dict[str, int | float | list[int] | None]:
    """Count the parameters and the multiply-adds of one image's forward pass on the CPU.

    Counted are convolutions and matrix products, a multiply-add as one, like in the papers. Norms,
    activations, pooling and compiled operators of mmcv are not. A two-stage detector is counted with
    all the proposals its test settings allow, so that the figure does not depend on the weights.
    Of a model with a ``detector`` inside, a tracker or a semi-supervised one, the detector is counted.

    Args:
        cfg: config of a detector or a classifier.
        shape: height and width of the image, None for that of the test pipeline.

    Returns:
        ``params``, ``backbone_params`` (None without ``backbone``), ``gflops`` and ``shape``.

    Raises:
        InputError: the model cannot be built, or does not run on an image alone.
    """
    use_scope(cfg)
    shape = shape or input_size(cfg)
    counted = deepcopy((cfg.model.get('detector') or cfg.model).to_dict())
    counted = Config(dict(model=counted, default_scope=cfg.default_scope), filename=cfg.filename)
    rpn = counted.model.get('test_cfg', {}) and counted.model.test_cfg.get('rpn')
    if rpn:
        rpn.nms.iou_threshold = 1.0
    flops = None
    if cfg.default_scope == 'mmpretrain':  # by shapes alone, which is quick, where a model does not look at numbers
        with contextlib.suppress(Exception), torch.device('meta'):
            model = build_model(counted).eval()
            flops = _flops(model, cfg, shape)
    if flops is None:
        model = build_model(counted).eval()
        try:
            flops = _flops(model, cfg, shape)
        except Exception as error:  # models do with images what they like
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f'{cfg.filename}: {type(model).__name__} cannot be counted, it does not run on an image of '
                f'{shape[0]}x{shape[1]} alone: {reason}'
            ) from error
    backbone = getattr(model, 'backbone', None)
    return dict(
        params=sum(p.numel() for p in model.parameters()),
        backbone_params=sum(p.numel() for p in backbone.parameters()) if backbone is not None else None,
        gflops=flops / 2e9,
        shape=list(shape),
    )


def _flops(model: nn.Module, cfg: Config, shape: tuple[int, int]) -> int:
    inputs = [torch.zeros(1, 3, *shape)]
    if cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample

        meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
        inputs.append([DetDataSample(metainfo=meta)])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs, mode='tensor')
    return counter.get_total_flops()

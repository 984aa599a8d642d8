"""Every network with stages as the backbone of a detector."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from conftest import CONFIGS
from se_mm.utils.config import build_model, load_config
from zoo import STRIDES, TINY, build

NAMES = [name for name, cfg in TINY.items() if cfg['type'] not in ('SECNN', 'SEResNetCIFAR', 'SEShakeShake')]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.slow
def test_faster_rcnn_takes_a_step_and_predicts(name):
    x = torch.rand(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    channels = [out.shape[1] for out in build(name).eval()(x)]
    strides = list(STRIDES.get(TINY[name]['type'], (8, 16, 32) if 'Inception' in name else (4, 8)))[: len(channels)]
    levels = strides + [strides[-1] * 2]
    cfg = load_config(CONFIGS / 'quickstart' / 'faster_rcnn_r18_shapes.py')
    cfg.model.backbone = dict(TINY[name], type=f'se_mm.{TINY[name]["type"]}')
    cfg.model.neck.update(in_channels=channels, num_outs=len(levels))
    cfg.model.rpn_head.anchor_generator.strides = levels
    cfg.model.roi_head.bbox_roi_extractor.featmap_strides = strides
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    shape = dict(img_shape=(128, 160), pad_shape=(128, 160), batch_input_shape=(128, 160))
    sample = DetDataSample(metainfo=dict(shape, ori_shape=(128, 160), scale_factor=(1.0, 1.0)))
    boxes = torch.tensor([[20.0, 30.0, 90.0, 100.0]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]))
    loss = model.train().parse_losses(model.loss(x, [sample]))[0]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    predicted = model.eval().predict(x, [sample])[0].pred_instances
    assert predicted.bboxes.shape[1] == 4 and predicted.scores.isfinite().all()

"""Detectors as functions of a tensor against MMDetection's own prediction."""

from collections import OrderedDict
from pathlib import Path

import mmdet
import onnxruntime
import pytest
import torch
from mmdet.models import RPNHead, StandardRoIHead
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from conftest import CONFIGS, ROOT
from se_mm.conversion.onnx_file import (
    LEAST,
    RUNTIMES,
    check_installed,
    export_onnx,
    largest_shift,
    run_by_onnxruntime,
)
from se_mm.conversion.quantised import in_int8, quantised
from se_mm.conversion.traceable import traceable
from se_mm.models import SELayer
from se_mm.utils import InputError

MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
C4 = MMDET_CONFIGS / 'faster_rcnn' / 'faster-rcnn_r50-caffe_c4-1x_coco.py'
FASTER_RCNN = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
TINY = dict(type='se_mm.SEResNet', depth=18, stem_channels=8, base_channels=8, se_ratio=4)
SINGLE_STAGE = dict(
    retinanet='retinanet/retinanet_r50_fpn_1x_coco.py',
    fcos='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    atss='atss/atss_r50_fpn_1x_coco.py',
    fsaf='fsaf/fsaf_r50_fpn_1x_coco.py',
)


def detector(path, score_thr, **changes):
    """A detector whose random weights find objects of every score."""
    register_all_modules()
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(changes)
    if 'neck' in cfg.model and cfg.model.neck.type == 'FPN' and path != FASTER_RCNN:
        cfg.model.backbone = TINY
        cfg.model.neck.in_channels = [8, 16, 32, 64]
    if path == C4:
        cfg.model.backbone = dict(TINY, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
        cfg.model.rpn_head.update(in_channels=32, feat_channels=32)
        shared_head = dict(type='se_mm.SEResLayer', depth=18, base_channels=8, se_ratio=4)
        cfg.model.roi_head.update(shared_head=shared_head)
        cfg.model.roi_head.bbox_roi_extractor.out_channels = 32
        cfg.model.roi_head.bbox_head.update(in_channels=64, num_classes=3)
    cfg.model.backbone.init_cfg = None
    test_cfg = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
    test_cfg.score_thr = score_thr
    torch.manual_seed(1)
    model = MODELS.build(cfg.model).eval()
    for name, parameter in model.named_parameters():
        if 'head' in name and 'shared_head' not in name and parameter.dim() > 1:
            small = path != C4 or 'fc_cls' not in name  # whose features are small, and no two scores may be equal
            nn.init.normal_(parameter, std=0.03 if small else 3)
    return model


def predicted(model, images):
    """Boxes, scores and labels by MMDetection."""
    height, width = images.shape[-2:]
    divisor = model.data_preprocessor.pad_size_divisor
    padded = nn.functional.pad(images, (0, -width % divisor, 0, -height % divisor))
    sample = DetDataSample(metainfo=dict(img_shape=(height, width), scale_factor=(1.0, 1.0)))
    found = model.predict(padded, [sample], rescale=False)[0].pred_instances
    return found.bboxes, found.scores, found.labels


@pytest.mark.parametrize('name', ['faster_rcnn', 'c4', *SINGLE_STAGE])
@torch.no_grad()
def test_same_detections(name):
    path = MMDET_CONFIGS / SINGLE_STAGE[name] if name in SINGLE_STAGE else C4 if name == 'c4' else FASTER_RCNN
    model = detector(path, 0.02)
    network = traceable(model)
    found = 0
    for size in [(96, 128), (77, 131), (40, 33)]:
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
        expected, actual = predicted(model, images), network(images)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        found += len(expected[1])
    assert found > 20
    head = model.bbox_head if name in SINGLE_STAGE else model.roi_head
    head.test_cfg.score_thr = 1.0
    boxes, scores, labels = network(images)
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)


@torch.no_grad()
def test_exported_single_stage_takes_any_size():
    model = detector(MMDET_CONFIGS / SINGLE_STAGE['fsaf'], 0.02)
    content = export_onnx(traceable(model), torch.zeros(1, 3, 288, 288), ['boxes', 'scores', 'labels'], dynamic=(2, 3))
    run = run_by_onnxruntime(content)
    for size in ((96, 128), (40, 33)):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
        expected = [x.numpy() for x in predicted(model, images)]
        assert len(expected[1]) > 5 and largest_shift(run(images.numpy()), expected, max(size)) < 1e-5


def test_gates_of_any_name_are_found():
    """SE that has another name than the networks here give."""
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 16, 3), attention=SELayer(16, ratio=4))).eval()
    content = export_onnx(network, torch.zeros(1, 3, 8, 8), ['map'])
    int8 = quantised(content, [torch.rand(1, 3, 8, 8).numpy()])
    assert in_int8(int8) == dict(gates=(0, 2), others=(1, 1))
    assert in_int8(quantised(content, [torch.rand(1, 3, 8, 8).numpy()], gates=True))['gates'] == (2, 2)


def test_detectors_that_predict_otherwise_are_refused():
    class OtherRPNHead(RPNHead):
        def _bbox_post_process(self, *args, **kwargs):
            raise NotImplementedError

    class OtherRoIHead(StandardRoIHead):
        pass

    model = detector(FASTER_RCNN, 0.05)
    model.roi_head.__class__ = OtherRoIHead
    traceable(model)
    model.rpn_head.__class__ = OtherRPNHead
    with pytest.raises(ValueError, match='OtherRPNHead has its own _bbox_post_process'):
        traceable(model)
    model.rpn_head.__class__ = RPNHead
    for nms, why in (
        (dict(offset=1), 'nms with offset'),
        (dict(class_agnostic=True, split_thr=9), 'nms with split_thr'),
    ):
        model.roi_head.test_cfg.nms = ConfigDict(type='nms', iou_threshold=0.5, **nms)
        with pytest.raises(ValueError, match=why):
            traceable(model)
    model.roi_head.test_cfg.nms = None
    with pytest.raises(ValueError, match='FasterRCNN: '):
        traceable(model)
    for path, why in (
        ('gfl/gfl_r50_fpn_1x_coco.py', 'GFLHead has its own _predict_by_feat_single'),
        ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'StandardRoIHead has masks'),
        ('detr/detr_r50_8xb2-150e_coco.py', 'DETR is neither a single-stage nor a two-stage detector'),
    ):
        cfg = Config.fromfile(MMDET_CONFIGS / path)
        cfg.model.backbone.init_cfg = None
        with pytest.raises(ValueError, match=why):
            traceable(MODELS.build(cfg.model))


def test_old_packages_are_named(monkeypatch):
    check_installed(*RUNTIMES)
    setup = (ROOT / 'setup.py').read_text()
    for name, least in LEAST.items():
        assert f"'{name}>={least}'" in setup
    monkeypatch.setattr(onnxruntime, '__version__', '1.16.3')
    with pytest.raises(InputError, match=r'onnxruntime 1.16.3 is too old, exporting needs 1.17 or newer: pip install'):
        check_installed('onnxruntime')

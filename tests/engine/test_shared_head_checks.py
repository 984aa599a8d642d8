"""Shared heads that do not fit their detector."""

from copy import deepcopy

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from conftest import CONFIGS, build_without_numbers
from se_mm.engine.checks import check_shared_heads
from se_mm.engine.weight_checks import check_frozen
from se_mm.utils import InputError

C4 = CONFIGS / 'faster_rcnn_c4'


def test_heads_that_do_not_go_on_where_the_backbone_ends(caplog):
    init_default_scope('mmdet')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    cfg = Config.fromfile(C4 / 'faster_rcnn_c4_se_r50_coco2014.py')
    cfg.merge_from_dict({'model.backbone.init_cfg': None, 'model.roi_head.shared_head.init_cfg': None})
    whole = dict(num_stages=4, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), out_indices=(3,))
    for backbone, head, error, warning in (
        ({}, {}, None, None),
        (
            {},
            dict(stage=2),
            r'model.roi_head.shared_head.stage=2 does not follow the 3 stages of the backbone: set stage=3',
            None,
        ),
        (whole, {}, r'set model.backbone.num_stages=3, with three strides and dilations, and out_indices=\(2,\)', None),
        ({}, dict(style='caffe'), None, "style='caffe', but the backbone's is 'pytorch'"),
        ({}, dict(type='ResLayer'), None, 'is a ResLayer, without SE: write se_mm.SEResLayer'),
        (dict(with_se=False), dict(type='ResLayer'), None, None),
    ):
        changed = deepcopy(cfg.model)
        changed.backbone.update(backbone)
        changed.roi_head.shared_head.update(head)
        model = build_without_numbers(changed)
        caplog.clear()
        if error:
            with pytest.raises(InputError, match=error):
                check_shared_heads(model)
        else:
            check_shared_heads(model)
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == bool(warning) and all(warning in message for message in messages)
    logger.removeHandler(caplog.handler)


def test_frozen_norms_at_random_are_refused_with_and_without_se():
    init_default_scope('mmdet')
    for name in ('faster_rcnn_c4_r50_coco2014', 'faster_rcnn_c4_se_r50_coco2014'):
        cfg = Config.fromfile(C4 / f'{name}.py')
        cfg.model.roi_head.shared_head.init_cfg = None
        options = 'model.roi_head.shared_head.norm_eval=False model.roi_head.shared_head.norm_cfg.requires_grad=True'
        with pytest.raises(InputError, match=options):
            check_frozen(cfg, build_without_numbers(cfg.model))

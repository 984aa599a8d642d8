from copy import deepcopy
from pathlib import Path

import mmdet
import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from se_mm.conversion import twin_config
from se_mm.models import SEResLayer, SEResNet
from se_mm.utils import InputError

MMDET, MMPRETRAIN = (Path(package.__file__).parent / '.mim' / 'configs' for package in (mmdet, mmpretrain))
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def changed(path, weights=None, variant='standard'):
    """The changes, the warnings, and the config with the changes."""
    cfg = Config.fromfile(path)
    changes, warnings = twin_config(cfg, weights=weights, variant=variant)
    cfg.merge_from_dict(deepcopy(changes))
    return changes, warnings, cfg


def test_detector_gets_released_weights():
    changes, warnings, cfg = changed(MMDET / 'faster_rcnn' / 'faster-rcnn_r50_fpn_1x_coco.py')
    init_cfg = dict(type='Pretrained', checkpoint='timm://seresnet50.ra2_in1k', _delete_=True)
    assert changes == dict(model=dict(backbone=dict(type='se_mm.SEResNet', init_cfg=init_cfg)))
    assert warnings == []
    init_default_scope('mmdet')
    assert type(MODELS.build(cfg.model).backbone) is SEResNet


def test_style_and_normalisation_follow_the_weights():
    """Its own weights are Detectron's, for BGR images that are not divided."""
    changes, _, cfg = changed(MMDET / 'faster_rcnn' / 'faster-rcnn_r50-caffe_fpn_1x_coco.py')
    backbone = changes['model']['backbone']
    assert backbone['init_cfg']['checkpoint'] == 'timm://legacy_seresnet50.in1k'
    assert backbone['stem_pool_ceil_mode'] is True and cfg.model.backbone.style == 'caffe'
    assert changes['model']['data_preprocessor'] == dict(IMAGENET, bgr_to_rgb=True)


def test_groups_and_widths_choose_the_weights():
    for name, weights in (
        ('faster-rcnn_x101-32x4d_fpn_1x_coco', 'timm://seresnext101_32x4d.gluon_in1k'),
        ('faster-rcnn_x101-64x4d_fpn_1x_coco', 'timm://seresnext101_64x4d.gluon_in1k'),
    ):
        changes, _, _ = changed(MMDET / 'faster_rcnn' / f'{name}.py')
        assert changes['model']['backbone']['init_cfg']['checkpoint'] == weights


def test_without_released_weights_nothing_stays_frozen_at_random():
    path = MMDET / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'
    changes, warnings, cfg = changed(path, None, 'bump')
    expected = dict(init_cfg=None, norm_eval=False, frozen_stages=-1, se_cfg=dict(variant='bump'))
    assert changes['model']['backbone'] == dict(expected, type='se_mm.SEResNet')
    assert 'starts at random weights, there are no released' in warnings[0] and 'frozen_stages=-1' in warnings[0]
    assert cfg.train_dataloader.batch_size == 2 and 'batch norm learns from 2 images' in warnings[1]


@pytest.mark.parametrize(
    'name', ['gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py', 'gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py']
)
def test_no_weights_with_group_norm_are_released(name):
    changes, warnings, _ = changed(MMDET / name)
    assert changes['model']['backbone']['init_cfg'] is None
    assert 'starts at random weights, there are no released' in warnings[0]


def test_plain_weights_are_warned_of():
    _, warnings, _ = changed(MMDET / 'retinanet' / 'retinanet_r50_fpn_1x_coco.py', 'torchvision://resnet50')
    assert 'not in the list of released weights' in warnings[0]
    assert "set frozen_stages=0 and init_cfg.fresh_se='identity'" in warnings[1]


def test_classifier_from_scratch_stays_so():
    changes, warnings, cfg = changed(MMPRETRAIN / 'resnet' / 'resnetv1d50_8xb32_in1k.py')
    backbone = dict(type='se_mm.SEResNet', deep_stem=True, avg_down=True, norm_eval=False)
    assert changes == dict(model=dict(backbone=backbone)) and warnings == []
    init_default_scope('mmpretrain')
    assert MODELS.build(cfg.model).backbone.stem is not None


@pytest.mark.parametrize('name', ['wide-resnet50_8xb32_in1k', 'wide-resnet101_8xb32_in1k'])
def test_wide_networks(name):
    """The twin without SE, or with gates of 1, is the plain network, also without stem_channels in the config."""
    plain = Config.fromfile(MMPRETRAIN / 'wrn' / f'{name}.py')
    init_default_scope('mmpretrain')
    theirs = MODELS.build(plain.model.backbone)
    theirs.eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for left_out in (dict(), dict(stem_channels=64)):
        cfg = Config(plain.to_dict())
        for key in left_out:
            cfg.model.backbone.pop(key)
        changes, warnings = twin_config(cfg)
        backbone = dict(type='se_mm.SEResNet', norm_eval=False, **left_out)
        assert changes == dict(model=dict(backbone=backbone)) and warnings == []
        cfg.merge_from_dict(changes)
        ours = MODELS.build(dict(cfg.model.backbone, with_se=False)).eval()
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            for a, b in zip(ours(image), theirs(image), strict=True):
                torch.testing.assert_close(a, b)
    twin = MODELS.build(cfg.model.backbone).eval()
    missing, unexpected = twin.load_state_dict(theirs.state_dict(), strict=False)
    assert len(missing) == 4 * sum(twin.stage_blocks) and all('.se_layer.' in key for key in missing + unexpected)
    with torch.no_grad():
        changed_by_se = not torch.allclose(twin(image)[0], theirs(image)[0])
        for block in (block for stage in twin.stage_names for block in getattr(twin, stage)):
            block.se_layer.conv2.conv.bias.fill_(40)  # whose sigmoid is 1
        torch.testing.assert_close(twin(image), theirs(image))
    assert changed_by_se


def test_groups_that_mmdets_config_leaves_out(tmp_path):
    """mmdet's ResNeXt has one group then, and no use of base_width."""
    path = written(tmp_path, dict(backbone=dict(type='ResNeXt', depth=50, base_width=8)), default_scope='mmdet')
    changes, _, cfg = changed(path)
    assert changes['model']['backbone']['groups'] == 1
    init_default_scope('mmdet')
    theirs = MODELS.build(dict(type='ResNeXt', depth=50, base_width=8))
    MODELS.build(dict(cfg.model.backbone, with_se=False)).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    'path, checkpoint, expected',
    [
        ('faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py', 'timm://legacy_seresnet50.in1k', dict(_delete_=True)),
        ('pascal_voc/faster-rcnn_r50-caffe-c4_ms-18k_voc0712.py', 'timm://legacy_seresnet50.in1k', dict(_delete_=True)),
        ('byol/benchmarks/mask-rcnn_r50-c4_ms-1x_coco.py', 'timm://seresnet50.ra2_in1k', {}),
    ],
    ids=lambda value: value.rpartition('/')[2] if isinstance(value, str) else '',
)
def test_shared_heads_continue_the_backbone(path, checkpoint, expected):
    """SE, weights and the place of the stride are those of the backbone's twin."""
    folder = MMPRETRAIN if path.startswith('byol') else MMDET
    changes, warnings, cfg = changed(folder / path)
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint, **expected)
    extra = dict(extra_norm=True) if path.startswith('byol') else {}
    at_random = [f'model.roi_head.shared_head starts from {checkpoint}; without SE, it starts at random']
    assert (
        warnings == (at_random if extra else [])
        and changes['model']['backbone']['init_cfg']['checkpoint'] == checkpoint
    )
    assert changes['model']['roi_head'] == dict(shared_head=dict(type='se_mm.SEResLayer', init_cfg=init_cfg, **extra))
    backbone, head = cfg.model.backbone, cfg.model.roi_head.shared_head
    assert backbone.style == head.style and backbone.depth == head.depth
    init_default_scope('mmdet')
    assert type(MODELS.build(cfg.model).roi_head.shared_head) is SEResLayer


def test_a_shared_head_follows_a_backbone_of_another_style_or_at_random():
    path = MMDET / 'faster_rcnn' / 'faster-rcnn_r50-caffe_c4-1x_coco.py'
    changes, warnings, _ = changed(path, None, 'bump')
    head = changes['model']['roi_head']['shared_head']
    options = dict(init_cfg=None, norm_eval=False, se_cfg=dict(variant='bump'), norm_cfg=dict(requires_grad=True))
    assert head == dict(type='se_mm.SEResLayer', **options)
    assert any(warning.startswith('model.roi_head.shared_head starts at random') for warning in warnings)
    _, _, cfg = changed(path, 'timm://seresnet50.ra2_in1k')
    assert cfg.model.roi_head.shared_head.style == cfg.model.backbone.style == 'pytorch'
    with pytest.raises(InputError, match='its model has no backbone of type ResNet, ResNetV1c'):
        changed(MMDET / 'tridentnet' / 'tridentnet_r50-caffe_1x_coco.py')


def test_shared_heads_of_other_units_and_other_places(tmp_path):
    weights = dict(type='Pretrained', checkpoint='a.pth')
    head = dict(type='ResLayer', depth=50, norm_eval=False, init_cfg=weights)
    roi_head = dict(type='StandardRoIHead', shared_head=head, init_cfg=weights)
    backbone = dict(type='ResNetV1d', depth=152, init_cfg=weights)
    changes, warnings, _ = changed(written(tmp_path, dict(backbone=backbone, roi_head=roi_head), default_scope='mmdet'))
    assert changes['model']['backbone']['init_cfg']['checkpoint'] == 'timm://seresnet152d.ra2_in1k'
    assert changes['model']['roi_head'] == dict(init_cfg=None, shared_head=dict(type='se_mm.SEResLayer', init_cfg=None))
    assert warnings[-2:] == [
        'model.roi_head.init_cfg: its checkpoint is of the model without SE and left out',
        'model.roi_head.shared_head starts at random weights, timm://seresnet152d.ra2_in1k has other units',
    ]
    lists = dict(backbone=dict(type='ResNet', depth=50), roi_head=[dict(type='CoStandardRoIHead')])
    changes, _, _ = changed(written(tmp_path, lists, default_scope='mmdet'))
    assert set(changes['model']) == {'backbone'}


def test_parts_of_trackers_are_found_and_teachers_stay():
    name = 'masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py'
    changes, _, _ = changed(MMDET / 'masktrack_rcnn' / name)
    assert changes['model']['detector']['backbone']['type'] == 'se_mm.SEResNet'
    changes, _, _ = changed(MMDET / 'lad' / 'lad_r50-paa-r101_fpn_2xb8_coco_1x.py')
    assert set(changes['model']) == {'backbone'}


def test_mistakes_are_named():
    path = MMDET / 'retinanet' / 'retinanet_r50_fpn_1x_coco.py'
    with pytest.raises(InputError, match="variant 'fast': choose one of standard, slow_squeeze"):
        changed(path, None, 'fast')
    with pytest.raises(
        InputError, match=r'weights timm://seresnext50_32x4d\.racm_in1k are for .*not for SEResNet with its arguments'
    ):
        changed(path, 'timm://seresnext50_32x4d.racm_in1k')
    with pytest.raises(InputError, match=r'are for .*SEBNInception.*not for SEResNet with its arguments'):
        changed(path, 'SE-BN-Inception.caffemodel')
    with pytest.raises(InputError, match='its model has no backbone of type ResNet'):
        changed(MMDET / 'ssd' / 'ssd300_coco.py')


def test_what_other_packages_leave_out_is_written(tmp_path):
    """mmsegmentation hands weights to the backbone; mmpose's and its ResNets have other defaults than mmdet's."""
    path = tmp_path / 'a.py'
    path.write_text(
        "default_scope = 'mmseg'\n"
        "model = dict(pretrained='open-mmlab://resnet50_v1c', backbone=dict(type='ResNetV1c', depth=50))\n"
    )
    changes, warnings = twin_config(Config.fromfile(path))
    backbone = dict(type='se_mm.SEResNet', deep_stem=True, norm_eval=False)
    assert changes == dict(model=dict(pretrained=None, backbone=backbone))
    assert 'starts at random weights' in warnings[0] and 'norm_eval' not in warnings[0]

    path.write_text("default_scope = 'mmpose'\nmodel = dict(backbone=dict(type='ResNet', depth=50))\n")
    changes, warnings = twin_config(Config.fromfile(path))
    assert changes == dict(model=dict(backbone=dict(type='se_mm.SEResNet', norm_eval=False, out_indices=(3,))))
    assert warnings == []


def written(tmp_path, model, **keys):
    path = tmp_path / 'written.py'
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in dict(keys, model=model).items()))
    return path


def test_checkpoints_of_the_plain_model_do_not_overwrite_se(tmp_path):
    changes, warnings, _ = changed(MMDET / 'cityscapes' / 'faster-rcnn_r50_fpn_1x_cityscapes.py')
    assert changes['load_from'] is None and 'load_from' in warnings[0]
    assert changes['model']['backbone']['init_cfg']['checkpoint'] == 'timm://seresnet50.ra2_in1k'

    changes, warnings, _ = changed(MMDET / 'qdtrack' / 'qdtrack_faster-rcnn_r50_fpn_4e_base.py')
    assert changes['model']['detector']['init_cfg'] is None and 'model.detector.init_cfg' in warnings[0]
    assert changes['model']['detector']['backbone']['init_cfg']['checkpoint'].startswith('timm://')


def test_random_weights_never_stay_frozen(tmp_path):
    path = written(tmp_path, dict(backbone=dict(type='ResNet', depth=50, frozen_stages=1)), default_scope='mmdet')
    changes, warnings, _ = changed(path)
    assert changes['model']['backbone'] == dict(type='se_mm.SEResNet', norm_eval=False, frozen_stages=-1)
    assert (
        'starts at random weights; the twin sets norm_eval=False, frozen_stages=-1, or else frozen layers would never'
        in warnings[0]
    )


def test_init_cfg_none_can_be_inherited(tmp_path):
    path = written(tmp_path, dict(backbone=dict(type='ResNet', depth=50, init_cfg=None)))
    changes, _, _ = changed(path, 'own.pth')
    (tmp_path / 'twin.py').write_text(Config(dict(_base_='./written.py', **changes)).pretty_text)
    init_cfg = Config.fromfile(tmp_path / 'twin.py').model.backbone.init_cfg
    assert init_cfg == dict(type='Pretrained', checkpoint='own.pth')


def test_both_names_of_widths_count(tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint='a.pth')
    backbone = dict(type='ResNeXt', depth=101, groups=32, width_per_group=8, init_cfg=init_cfg)
    changes, _, _ = changed(written(tmp_path, dict(backbone=backbone), default_scope='mmpretrain'))
    assert changes['model']['backbone']['init_cfg']['checkpoint'] == 'timm://seresnext101_32x8d.ah_in1k'


def test_normalisation_inside_that_of_teacher_and_student():
    changes, _, cfg = changed(MMDET / 'soft_teacher' / 'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.01-coco.py')
    images = dict(IMAGENET, bgr_to_rgb=True)
    assert changes['model']['data_preprocessor'] == dict(data_preprocessor=images)
    assert changes['model']['detector']['data_preprocessor'] == images


def test_arguments_follow_named_weights():
    path = MMDET / 'faster_rcnn' / 'faster-rcnn_r50-caffe_fpn_1x_coco.py'
    changes, _, _ = changed(path, 'timm://seresnet50.ra2_in1k')
    assert changes['model']['backbone']['style'] == 'pytorch'
    with pytest.raises(InputError, match='are of standard SE: leave out --variant'):
        changed(path, 'timm://seresnet50.ra2_in1k', 'bump')


def test_other_packages_resnets_are_refused(tmp_path):
    path = written(tmp_path, dict(backbone=dict(type='ResNet', depth=50)), default_scope='mmaction')
    with pytest.raises(InputError, match='of mmaction; known are the ResNets of mmdet, '):
        changed(path)


def test_config_of_classes(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text(
        'from mmdet.models.backbones import ResNet\nfrom mmdet.models.detectors import RetinaNet\n'
        'model = dict(type=RetinaNet, backbone=dict(type=ResNet, depth=50))\n'
    )
    with pytest.raises(InputError, match='write SEResNet or SEResNeXt of se_mm.models'):
        twin_config(Config.fromfile(path))

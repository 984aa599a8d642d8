import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torchvision.transforms.functional import ten_crop

from conftest import CONFIGS
from se_mm.engine.tta import merged_views
from se_mm.utils import InputError
from se_mm.utils.config import load_config


def crops_of(cfg, image):
    """The inputs of the ten views of an image, and the image that is cropped, both (..., C, H, W)."""
    init_default_scope(cfg.default_scope)
    pipeline, _ = merged_views(cfg, 'ten-crop')
    at = next(i for i, transform in enumerate(pipeline) if transform['type'] == 'TestTimeAug')
    resized = Compose([t for t in pipeline[:at] if t['type'] != 'LoadImageFromFile'])(dict(img=image))
    views = Compose(pipeline[at:])(dict(resized))
    return views, torch.from_numpy(resized['img']).permute(2, 0, 1)


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('imagenet/se_r50_imagenet', 224),
        ('imagenet/se_inception_resnet_v2_imagenet', 299),
        ('imagenet/se_net154_320_imagenet', 320),
        ('se_r152_places365', 224),
        ('variations/se_r18_svhn', 224),
    ],
)
def test_ten_crops_are_those_of_torchvision(name, size):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    for shape in ((91, 120, 3), (200, 77, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        views, resized = crops_of(cfg, image)
        assert len(views['inputs']) == 10 and resized.shape[1] != resized.shape[2]
        for crop, their in zip(views['inputs'], ten_crop(resized, size), strict=True):
            assert torch.equal(crop, their)
        assert [sample.img_shape for sample in views['data_samples']] == [(size, size)] * 10


def test_margins_that_no_centre_halves():
    """Of 108 - 95 pixels one more lies on one side, and the mirror image's centre is another one."""
    cfg = Config.fromfile(CONFIGS / 'quickstart' / 'se_r18_scenes.py')
    cfg.test_dataloader.dataset.pipeline[2].crop_size = (95, 93)
    image = np.random.default_rng(0).integers(0, 256, (108, 140, 3), np.uint8)
    views, resized = crops_of(cfg, image)
    for crop, their in zip(views['inputs'], ten_crop(resized, (93, 95)), strict=True):
        assert torch.equal(crop, their)


def test_images_that_are_not_cropped_are_flipped_only():
    cfg = Config.fromfile(CONFIGS / 'cifar' / 'se_r110_cifar10.py')
    before = cfg.to_dict()
    with pytest.raises(InputError, match='se_r110_cifar10.py has no CenterCrop, whose .* crops need: set --tta flip'):
        merged_views(cfg, 'ten-crop')
    init_default_scope(cfg.default_scope)
    pipeline, model = merged_views(cfg, 'flip')
    assert cfg.to_dict() == before and model['type'] == 'mmpretrain.AverageClsScoreTTA'
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mirrored, plain = Compose(pipeline)(dict(img=image))['inputs']
    assert torch.equal(mirrored, plain.flip(2)) and not torch.equal(mirrored, plain)


def test_detectors_take_no_crops():
    cfg = Config.fromfile(CONFIGS / 'faster_rcnn_se_r50_coco.py')
    with pytest.raises(InputError, match='is of a detector, which needs whole images: set --tta flip'):
        merged_views(cfg, 'ten-crop')


def test_masks_are_not_merged():
    cfg = load_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    with pytest.raises(InputError, match='finds masks, and MMDetection merges boxes only: leave out --tta'):
        merged_views(cfg)


def test_a_configs_own_views_come_first_unless_others_are_asked_for():
    cfg = Config.fromfile(CONFIGS / 'imagenet' / 'r50_imagenet.py')
    cfg.tta_pipeline, cfg.tta_model = [dict(type='Own')], dict(type='OwnModel')
    assert merged_views(cfg) == (cfg.tta_pipeline, cfg.tta_model)
    pipeline, model = merged_views(cfg, 'flip')
    assert pipeline[-1]['type'] == 'TestTimeAug' and model['type'] == 'mmpretrain.AverageClsScoreTTA'


@pytest.mark.parametrize('dataset', [None, dict(type='ConcatDataset', datasets=[dict(pipeline=[])] * 2)])
def test_needs_one_data_set(dataset):
    cfg = Config(dict(default_scope='mmpretrain', test_dataloader=dict(dataset=dataset)))
    with pytest.raises(InputError, match='data sets: give it one'):
        merged_views(cfg)

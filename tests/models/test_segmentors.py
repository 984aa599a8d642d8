"""mmsegmentation's configs with the backbones of this package."""

import sys
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS as MMSEG_MODELS
from PIL import Image

from conftest import TOOLS
from se_mm.models import SEResNet

FOLDER = Path(mmseg.__file__).parent / '.mim'


@pytest.mark.parametrize(
    'kind, options',
    [
        ('ResNetV1c', dict(depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True)),
        ('ResNetV1d', dict(depth=50, dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1), multi_grid=(1, 2, 4))),
        ('ResNet', dict(depth=18, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True)),
    ],
)
def test_dilated_features_equal_mmsegmentations(kind, options):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    theirs = MMSEG_MODELS.build(dict(type=kind, **options)).double()
    theirs.eval()
    stem = dict(deep_stem=kind != 'ResNet', avg_down=kind == 'ResNetV1d')
    ours = SEResNet(**options, **stem, with_se=False).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 97, 130, dtype=torch.float64)
    for a, b in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(a, b)


def test_entries_of_multi_grid():
    with pytest.raises(ValueError, match='give 3 entries'):
        SEResNet(50, multi_grid=(1, 2))


def test_twin_trains_with_mmsegmentations_tools(run, tmp_path):
    random = np.random.RandomState(0)
    for split in ('train', 'val'):
        for i in range(4):
            labels = np.zeros((64, 128), np.uint8)
            labels[20:45, 20 * i : 20 * i + 30] = i + 1
            image = (labels[..., None] * 40 + random.randint(0, 30, (64, 128, 3))).astype(np.uint8)
            for kind, name, pixels in (
                ('leftImg8bit', 'leftImg8bit', image),
                ('gtFine', 'gtFine_labelTrainIds', labels),
            ):
                path = tmp_path / 'data' / 'cityscapes' / kind / split / 'town' / f'{i}_{name}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    name = 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    code, output = run(sys.executable, TOOLS / 'swap_backbone.py', f'mmseg::{name}', 'se.py')
    assert code == 0 and 'pretrained=None' in output and 'starts at random weights' in output, output
    code, output = run(
        sys.executable,
        FOLDER / 'tools' / 'train.py',
        'se.py',
        '--cfg-options',
        'model.data_preprocessor.size=(64,64)',
        'train_dataloader.dataset.pipeline.2.scale=(128,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(128,64)',
        'train_cfg.max_iters=3',
        'train_cfg.val_interval=3',
        'default_hooks.logger.interval=1',
        *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val')),
        *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val')),
    )
    assert code == 0 and 'Iter(train) [3/3]' in output and 'mIoU:' in output, output
    assert 'loss: nan' not in output

import sys
from pathlib import Path

import mmdet
import mmpretrain
import pytest
from mmcv import _ext
from mmengine.registry import MODELS, init_default_scope

from se_mm import mmcv_ext
from se_mm.models import SELayer, SEResNet, SEResNeXt
from se_mm.weights import read_checkpoint


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain', 'mmengine'])
def test_scoped_names_work_everywhere(scope):
    init_default_scope(scope)
    assert type(MODELS.build(dict(type='se_mm.SEResNet', depth=18))) is SEResNet
    assert type(MODELS.build(dict(type='se_mm.SEResNeXt', depth=50))) is SEResNeXt
    assert type(MODELS.build(dict(type='se_mm.SELayer', channels=32))) is SELayer


def test_bare_names_are_ours_in_mmdet_and_mmpretrains_in_mmpretrain():
    init_default_scope('mmdet')
    assert type(MODELS.build(dict(type='SEResNet', depth=18))) is SEResNet
    init_default_scope('mmpretrain')
    assert type(MODELS.build(dict(type='SEResNet', depth=50))) is mmpretrain.models.SEResNet


def test_mmdets_own_tools_take_it_without_custom_imports(run, retinanet_options, tmp_path):
    """Their tools, one of their configs, only `type=` changed."""
    folder = Path(mmdet.__file__).parent / '.mim'
    options = ['model.backbone.type=se_mm.SEResNet', 'model.backbone.init_cfg=None', *retinanet_options]
    config = folder / 'configs' / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'
    python = [sys.executable, *(['-m', 'se_mm.mmcv_ext'] if _ext is mmcv_ext else [])]
    code, output = run(*python, folder / 'tools' / 'train.py', config, '--cfg-options', *options)
    assert code == 0, output
    checkpoint = tmp_path / 'work_dirs' / config.stem / 'epoch_1.pth'
    code, output = run(*python, folder / 'tools' / 'test.py', config, checkpoint, '--cfg-options', *options)
    assert code == 0 and 'Epoch(test) [8/8]' in output, output
    weights = read_checkpoint(checkpoint)['state_dict']
    assert 'backbone.layer4.1.se_layer.conv2.conv.weight' in weights


def test_import_takes_no_longer_than_what_it_needs(run):
    """mmdet, mmpretrain and pycocotools are loaded only by those who use them."""
    code, output = run(sys.executable, '-c', 'import sys, se_mm; print(set(sys.modules))')
    assert code == 0, output
    assert not {'mmdet', 'mmpretrain', 'pycocotools', 'mmcv.ops', 'timm'} & set(eval(output.splitlines()[-1]))

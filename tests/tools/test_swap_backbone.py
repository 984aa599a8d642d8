"""SE twins of other packages' configs, with the tools that write and try them."""

import sys
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from conftest import TOOLS
from se_mm.weights import read_checkpoint

FOLDER = Path(mmdet.__file__).parent / '.mim'
CONFIG = FOLDER / 'configs' / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'


@pytest.mark.parametrize('name', [CONFIG, 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'], ids=['file', 'name'])
def test_twin_of_an_installed_config(run, tmp_path, name):
    code, output = run(sys.executable, TOOLS / 'swap_backbone.py', name, 'mine/se.py', '--variant', 'bump')
    assert code == 0 and 'warning: model.backbone starts at random weights' in output, output
    cfg = Config.fromfile(tmp_path / 'mine' / 'se.py')
    assert "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'" in (tmp_path / 'mine' / 'se.py').read_text()
    assert cfg.model.backbone.type == 'se_mm.SEResNet' and cfg.model.backbone.se_cfg == dict(variant='bump')
    assert cfg.model.backbone.depth == 18 and cfg.model.bbox_head.num_classes == 80


def test_twin_of_ones_own_config_trains_with_mmdets_tools(run, tmp_path, retinanet_options):
    imports = "custom_imports = dict(imports=['se_mm.mmcv_ext'])\n"  # for an mmcv without operators
    (tmp_path / 'mine.py').write_text(f"_base_ = '{CONFIG}'\n{imports}")
    code, output = run(sys.executable, TOOLS / 'swap_backbone.py', 'mine.py', 'se/twin.py', '--weights', 'none')
    assert code == 0 and "_base_ = '../mine.py'" in output, output
    train = [sys.executable, FOLDER / 'tools' / 'train.py', 'se/twin.py', '--cfg-options', *retinanet_options]
    code, output = run(*train)
    assert code == 0, output
    weights = read_checkpoint(tmp_path / 'work_dirs' / 'twin' / 'epoch_1.pth')['state_dict']
    assert 'backbone.layer4.1.se_layer.conv2.conv.weight' in weights


def test_mistakes_are_named(run, tmp_path):
    swap = [sys.executable, TOOLS / 'swap_backbone.py']
    (tmp_path / 'there.py').touch()
    for arguments, message in (
        (['no.py', 'a.py'], 'config no.py does not exist'),
        (['mmdet::no/no.py', 'a.py'], 'config mmdet::no/no.py does not exist: there is no /'),
        (['mmno::no/no.py', 'a.py'], 'mmno is not installed'),
        ([CONFIG, 'there.py'], 'there.py is already there: give another name'),
    ):
        code, output = run(*swap, *arguments)
        assert code == 1 and message in output and 'Traceback' not in output
    assert not (tmp_path / 'a.py').exists()


def test_a_config_that_imports_its_bases_is_refused(run, tmp_path):
    (tmp_path / 'lazy.py').write_text(
        'from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\n'
    )
    for tool, rest in (('swap_backbone.py', ['new.py']), ('deploy.py', ['x.pth', 'new.pth'])):
        code, output = run(sys.executable, TOOLS / tool, 'lazy.py', *rest)
        assert code == 1 and 'lazy.py inherits by Python imports' in output, output
    assert [path.name for path in tmp_path.iterdir()] == ['lazy.py']

import re
import time

import pytest
import torch
from mmengine.config import Config

from se_mm.conversion import timm_state
from se_mm.engine.weight_checks import check_normalisation
from se_mm.models import SEResLayer, SEResNet
from se_mm.utils import InputError
from se_mm.weights import load_backbone, read_checkpoint, recognise
from se_mm.weights.meta import properties_in, written_config

BGR = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)


def trained(path, data_preprocessor=BGR, **arguments):
    """What MMEngine saves of a detector."""
    backbone = dict(type='se_mm.SEResNet', depth=50, **arguments)
    cfg = Config(dict(model=dict(type='RetinaNet', backbone=backbone, data_preprocessor=data_preprocessor), a=1))
    tensors = {f'backbone.{k}': v for k, v in SEResNet(50, **arguments).state_dict().items()}
    torch.save(dict(meta=dict(cfg=cfg.pretty_text, epoch=1), state_dict=tensors), path)
    return str(path)


def test_arguments_that_change_no_tensor_are_checked(tmp_path):
    path = trained(tmp_path / 'a.pth', style='caffe', stem_pool_ceil_mode=True)
    with pytest.raises(InputError, match=r"set .*stem_pool_ceil_mode=True.*style='caffe'|style='caffe'.*ceil_mode"):
        load_backbone(SEResNet(50), path)
    load_backbone(SEResNet(50, style='caffe', stem_pool_ceil_mode=True), path)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(se_position='post'), "set se_position='post' (is 'standard')"),
        (dict(se_cfg=dict(squeeze='max')), "set se_cfg={'squeeze': 'max'} (is {})"),
        (
            dict(se_cfg=dict(bias=False, act_cfg=[dict(type='ReLU'), dict(type='HSigmoid')])),
            "set se_cfg={'bias': False, 'act_cfg': ({'type': 'ReLU'}, {'type': 'HSigmoid'})} (is {})",
        ),
    ],
    ids=str,
)
def test_options_of_se_that_change_no_tensor_are_checked(arguments, words, tmp_path):
    """Also of shared heads, and of weights without these options."""
    path = trained(tmp_path / 'a.pth', base_channels=16, **arguments)
    for kind in (SEResNet, SEResLayer):
        with pytest.raises(InputError, match=re.escape(words)):
            load_backbone(kind(50, base_channels=16), path)
        load_backbone(kind(50, base_channels=16, **arguments), path)
    path = trained(tmp_path / 'b.pth', base_channels=16)
    with pytest.raises(InputError, match='set se_(position|cfg)='):
        load_backbone(SEResNet(50, base_channels=16, **arguments), path)
    content = read_checkpoint(tmp_path / 'a.pth')
    weights = recognise(content['state_dict'], 'a.pth', meta=content['meta'])
    with pytest.raises(InputError, match=r'a\.pth: timm has no network with .*se_(position|cfg)='):
        timm_state(weights, 'a.pth')


def test_normalisation_is_compared_in_one_order(tmp_path, monkeypatch):
    report = load_backbone(SEResNet(50), trained(tmp_path / 'a.pth'))
    assert report.format.normalisation == dict(mean=[123.675, 116.28, 103.53], std=[1.0, 1.0, 1.0])
    said = []
    monkeypatch.setattr('se_mm.engine.weight_checks.print_log', lambda message, **_: said.append(message))
    check_normalisation(report, BGR, 'model.backbone')
    assert not said
    check_normalisation(report, dict(BGR, std=[58.395, 57.12, 57.375]), 'model.backbone')
    assert len(said) == 1 and 'expect RGB images' in said[0]


def test_only_plain_data_is_read(tmp_path):
    text = f"x = open({str(tmp_path / 'made')!r}, 'w')\ny = dict(a=[1, (2, -3)], b=None)\nz = __import__('os')\n"
    assert written_config(text) == dict(y=dict(a=[1, [2, -3]], b=None))
    assert not (tmp_path / 'made').exists()
    assert written_config('((((') == written_config(None) == written_config('(' * 100000) == {}


@pytest.mark.parametrize('start', ['a = [', 'a = 1\n', ''])
def test_endless_configs_are_not_parsed(start):
    began = time.monotonic()
    assert written_config(start + 'a=1\n' * 5_000_000) == {}
    assert time.monotonic() - began < 2
    assert written_config('a = 1\n# ' + 'x' * 200_000) == dict(a=1)


def test_normalisation_of_no_numbers_is_left_out():
    backbone = dict(type='SEResNet')
    for mean in (['a', 'b', 'c'], [None] * 3, [[1]] * 3):
        images = dict(mean=mean, std=[1.0] * 3)
        assert properties_in(dict(backbone=backbone, data_preprocessor=images), '')['normalisation'] is None

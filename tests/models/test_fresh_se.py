"""SE layers that start as the identity beside weights of a plain network."""

import copy

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from se_mm.engine.weight_checks import check_pretrained
from se_mm.models import SELayer, SEResNet
from se_mm.models.fresh_se import start_as_identity
from se_mm.utils import InputError
from se_mm.utils.config import build_model, use_scope
from se_mm.weights import load_backbone
from zoo import TINY, build, image, loss_of


def with_plain_weights(name, path, **kwargs):
    """A plain network, and the same with SE that starts as the identity beside its weights."""
    plain = build(name, with_se=False, **kwargs)
    for module in plain.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    torch.save(plain.state_dict(), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), fresh_se='identity')
    return plain.double().eval(), build(name, seed=1, init_cfg=init_cfg, **kwargs).double().eval()


@pytest.mark.parametrize('name', [name for name in TINY if name not in ('SECNN', 'SEBNInception')])
def test_fresh_se_starts_as_the_identity(name, tmp_path):
    plain, se = with_plain_weights(name, tmp_path / 'plain.pth')
    x = image(1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(se(x), plain(x), strict=True):
            torch.testing.assert_close(a, b)
    loss_of(se(x)).backward()
    for module in se.modules():
        if isinstance(module, SELayer):
            assert module.conv2.conv.bias.grad.any()


@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('SEResNet-bottleneck', dict(se_position='3x3')),
        ('SEVGG', dict(norm_cfg=None)),
        ('SEMobileNet', dict(norm_cfg=dict(type='GN', num_groups=4))),
    ],
)
def test_fresh_se_starts_as_the_identity_after_other_layers(name, kwargs, tmp_path):
    plain, se = with_plain_weights(name, tmp_path / 'plain.pth', **kwargs)
    x = image(1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(se(x), plain(x), strict=True):
            torch.testing.assert_close(a, b)


PLUGIN = dict(cfg=dict(type='ContextBlock', ratio=1 / 4), position='after_conv2')


@pytest.mark.parametrize(
    'name, kwargs, layer',
    [
        ('SEBNInception', dict(), r'stage2.0.se_layer, stage3\.0\.se_layer'),  # of units that pass pooled input on
        ('SEResNet', dict(se_position='post'), 'layer1.0.se_layer'),
        ('SEResNet', dict(plugins=[PLUGIN]), 'layer1.0.se_layer'),
        ('SEMobileNet', dict(se_cfg=dict(act_cfg=(dict(type='ReLU'), dict(type='Tanh')))), 'stage1.0.se_layer'),
        ('SEShuffleNet', dict(norm_cfg=dict(type='IN', affine=False)), 'stage1.0.se_layer'),
        ('SECNN', dict(), 'stage1.0'),
    ],
)
def test_where_fresh_se_cannot_start_as_the_identity(name, kwargs, layer):
    model = build(name, **kwargs)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=rf"fresh_se='identity': {layer}.* cannot start as ") as error:
        start_as_identity(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if name == 'SEBNInception':
        assert 'Set with_se=(True, False, False), or leave' in str(error.value)
        start_as_identity(build(name, with_se=(True, False, False)))


def test_gates_cannot_start_at_two_values(tmp_path):
    torch.save(SEResNet(18, base_channels=16, with_se=False).state_dict(), tmp_path / 'a.pth')
    model = SEResNet(18, base_channels=16, se_cfg=dict(gate_bias=2.0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match='leave one of both out'):
        load_backbone(model, tmp_path / 'a.pth', fresh_se='identity')
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('fresh_se', ['random', 'identity'])
def test_fresh_se_that_is_frozen(fresh_se, tmp_path):
    """The report says so, and the tools refuse random gates that never learn."""
    torch.save(SEResNet(18, base_channels=16, with_se=False).state_dict(), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), fresh_se=fresh_se)
    backbone = dict(type='se_mm.SEResNet', depth=18, base_channels=16, frozen_stages=2, init_cfg=init_cfg)
    cfg = Config(dict(model=dict(type='ImageClassifier', backbone=backbone), default_scope='mmpretrain'))
    use_scope(cfg)
    model = build_model(cfg)
    report = load_backbone(model.backbone, tmp_path / 'a.pth', fresh_se=fresh_se)
    assert report.frozen == ('layer1', 'layer2')
    assert 'the SE layers of layer1, layer2 are frozen' in str(report) and 'set frozen_stages=0' in str(report)
    if fresh_se == 'identity':
        check_pretrained(cfg, model)
    else:
        with pytest.raises(
            InputError, match=r"model\.backbone\.init_cfg: .*set frozen_stages=0 and init_cfg\.fresh_se='identity'"
        ):
            check_pretrained(cfg, model)
    cfg.model.backbone.frozen_stages = 0
    model = build_model(cfg)
    check_pretrained(cfg, model)
    assert load_backbone(model.backbone, tmp_path / 'a.pth').frozen == ()

"""Arguments of SEResNet and its relatives: what they do, and mistakes in them."""

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from se_mm.models import SEResNet, SEResNeXt, SEShuffleNet
from se_mm.models.blocks import SEBasicBlock, SEBottleneck
from test_resnet import DCN, PLUGINS, assert_same, images, randomize


def test_train_returns_self_and_keeps_frozen_parts_in_eval():
    model = SEResNet(18, frozen_stages=1, norm_eval=True)
    assert model.train() is model and model.eval() is model
    model.train()
    assert not model.layer1.training and model.layer2.training and not model.bn1.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(p.requires_grad for p in model.layer2.parameters())
    free = SEResNet(18, norm_eval=False).train()
    assert all(m.training for m in free.modules())


def test_recomputing_blocks_changes_no_gradient():
    plain, recomputed = SEResNet(18, norm_eval=False).double(), SEResNet(18, norm_eval=False, with_cp=True).double()
    recomputed.load_state_dict(randomize(plain).state_dict())
    assert_same(recomputed, plain, images().requires_grad_())


def test_drop_path_rate_rises_and_drops_whole_branches():
    model = randomize(SEResNet(18, drop_path_rate=0.4, norm_eval=False))
    rates = [getattr(block.drop_path, 'drop_prob', 0) for i in range(1, 5) for block in getattr(model, f'layer{i}')]
    assert rates == pytest.approx([0.4 * i / 7 for i in range(8)])
    block = model.layer4[1].train()
    block.drop_path.drop_prob = 0.5
    torch.manual_seed(0)
    x = torch.rand(64, 512, 2, 2)
    kept = (block(x) != x).flatten(1).any(1).sum().item()  # x is positive: without a branch, relu keeps it
    assert 16 < kept < 48


@pytest.mark.parametrize('size', [33, 64, 97])
@pytest.mark.parametrize('norm', [dict(type='BN'), dict(type='SyncBN'), dict(type='GN', num_groups=8), dict(type='IN')])
def test_sizes_and_norms(norm, size):
    model = SEResNet(18, norm_cfg=norm, base_channels=16).eval()
    outs = model(torch.rand(1, 3, size, size))
    for i, out in enumerate(outs):
        side = -(-size // 2 ** (i + 2))
        assert out.shape == (1, 16 * 2**i, side, side)


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(depth=51), ['SEResNet', '51', '[18, 34, 50, 101, 140, 152]']),
        (dict(depth=50, num_stages=5), ['num_stages=5', '1 to 4']),
        (dict(depth=50, num_stages=0), ['num_stages=0', '1 to 4']),
        (dict(depth=50, num_stages='4'), ["num_stages='4'", '1 to 4']),
        (dict(depth=50, expansion=0), ['expansion=0', 'from 1']),
        (dict(depth=18, expansion=2), ['expansion=2', '18 and 34']),
        (dict(depth=50, se_cfg=dict(squeeze_channels=-1)), ['squeeze_channels=-1', 'from 1']),
        (dict(depth=50, se_cfg=dict(squeeze_channels='32')), ["squeeze_channels='32'", 'from 1']),
        (dict(depth=50, plugins=[dict(PLUGINS[0], stages=(True,))]), ['plugin stages=(True,)', 'num_stages=4']),
        (dict(depth=50, with_se=(True, False)), ['with_se=(True, False)', 'num_stages=4']),
        (dict(depth=50, se_position='top'), ['top', "'pre'"]),
        (dict(depth=50, num_stages=3, out_indices=(2,)), ['strides=(1, 2, 2, 2)', 'num_stages=3']),
        (
            dict(depth=50, num_stages=2),
            ['num_stages=2', 'strides=', 'dilations=', '2 entries', 'out_indices=', '0 to 1'],
        ),
        (dict(depth=50, se_cfg=dict(act_cfg=dict(type='ReLU'))), ['act_cfg=', 'two configs']),
        (dict(depth=50, out_indices=(4,)), ['out_indices=(4,)', '0 to 3']),
        (dict(depth=50, out_indices=()), ['out_indices=()', '0 to 3']),
        (dict(depth=50, frozen_stages=5), ['frozen_stages=5', '-1 to 4']),
        (dict(depth=50, style='tensorflow'), ['tensorflow', "'pytorch' or 'caffe'"]),
        (dict(depth=50, drop_path_rate=1.0), ['drop_path_rate=1.0']),
        (dict(depth=50, fused_se='cuda'), ["fused_se='cuda'", "'torch', 'triton'"]),
        (dict(depth=50, se_ratio=0), ['se_ratio=0', 'from 1']),
        (dict(depth=50, se_ratio=512), ['se_ratio=512', '1 to 256']),
        (dict(depth=18, dcn=DCN, stage_with_dcn=(True,) * 4), ['dcn', '18', 'choose 50 or more']),
        (dict(depth=18, plugins=PLUGINS[:1]), ['after_conv3', 'after_conv1']),
        (dict(depth=50, plugins=[dict(cfg=dict(type='ContextBlock', ratio=1), position='x')]), ["'x'", 'after_conv1']),
        (dict(depth=50, dcn=DCN, stage_with_dcn=(True,)), ['stage_with_dcn=(True,)', 'num_stages=4']),
        (dict(depth=50, init_cfg=dict(type='Normal', layer='Conv2d'), pretrained='x'), ['init_cfg', 'pretrained']),
    ],
    ids=lambda value: '-'.join(map(str, value)) if isinstance(value, dict) else '',
)
def test_mistakes_are_named_with_the_choices(kwargs, words):
    with pytest.raises(ValueError) as error:
        SEResNet(**kwargs)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_pretrained_has_to_be_a_path():
    with pytest.raises(TypeError, match='pretrained=0: give the path of a checkpoint'):
        SEResNet(50, pretrained=0)


@pytest.mark.parametrize('block', [SEBasicBlock, SEBottleneck])
def test_mistakes_in_blocks_are_named(block):
    with pytest.raises(ValueError, match="style='tensorflow': choose 'pytorch' or 'caffe'"):
        block(64, 64, style='tensorflow')
    with pytest.raises(ValueError, match="expansion='2': choose a whole number"):
        block(64, 64, expansion='2')


def test_attributes_have_the_names_of_openmmlab():
    """Of mmdet's ResNet and of mmpretrain's blocks; tools and tests of both look at them."""
    model = SEResNet(50, base_channels=16, expansion=2, with_cp=True, avg_down=True)
    assert (model.stem_channels, model.base_channels, model.expansion, model.avg_down) == (16, 16, 2, True)
    assert SEResNet(18, stem_channels=8).stem_channels == 8
    first, second = model.layer2[:2]
    assert (first.in_channels, first.mid_channels, first.out_channels, first.expansion) == (32, 32, 64, 2)
    assert (second.in_channels, second.mid_channels, second.out_channels) == (64, 32, 64)
    assert first.with_cp and not any(block.with_cp for block in SEResNet(18).layer1)
    shuffle = SEShuffleNet(3)
    assert shuffle.stage1[0].first_block and not shuffle.stage2[0].first_block


def test_blocks_alone_can_be_recomputed():
    """Recomputing is each block's own choice."""
    model = randomize(SEResNet(18, norm_eval=False).double())
    calls = []
    for block in model.layer2:
        block.conv1.register_forward_hook(lambda *_: calls.append(1))
    model.layer2[1].with_cp = True
    sum(out.sum() for out in model(images().requires_grad_())).backward()
    assert len(calls) == 3


def test_seresnext_has_no_shallow_depths():
    with pytest.raises(ValueError, match=r'SEResNeXt has no depth 18: choose one of \[50, 101, 152\]'):
        SEResNeXt(18)


def test_frozen_random_weights_are_reported(caplog):
    MMLogger.get_current_instance().addHandler(caplog.handler)
    for kwargs, expected in ((dict(), 'norm_eval'), (dict(norm_eval=False, frozen_stages=1), 'frozen_stages')):
        caplog.clear()
        SEResNet(18, **kwargs).init_weights()
        assert expected in caplog.text and 'random weights' in caplog.text
    caplog.clear()
    SEResNet(18, norm_eval=False).init_weights()
    assert 'random weights' not in caplog.text


def test_pretrained_checkpoint_is_loaded(tmp_path):
    source = randomize(SEResNet(18))
    weights = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.')
    model = SEResNet(18, init_cfg=cfg)
    model.init_weights()
    for (name, a), b in zip(model.state_dict().items(), source.state_dict().values()):
        torch.testing.assert_close(a, b, msg=name)

"""Options of SE that all backbones have."""

import pytest
import torch
from torch import nn

from se_mm.models import SELayer
from se_mm.models.blocks import SE_POSITIONS
from se_mm.models.se_layer import VARIANTS
from zoo import TINY, build, image, loss_of


@pytest.fixture(params=TINY)
def name(request):
    return request.param


@pytest.mark.parametrize('name', [name for name in TINY if name != 'SECNN'])  # where SE replaces a convolution
def test_plain_twin(name):
    """The same network without SE: nothing but SE layers are missing, and nothing else is different."""
    se, plain = build(name), build(name, with_se=False)
    assert not any(isinstance(module, SELayer) for module in plain.modules())
    state = se.state_dict()
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert shapes == {key: value.shape for key, value in state.items() if 'se_layer' not in key}
    # gates of one make the SE network the plain one
    for module in se.modules():
        if isinstance(module, SELayer):
            nn.init.zeros_(module.conv2.conv.weight)
            nn.init.constant_(module.conv2.conv.bias, 100)
    plain.load_state_dict({key: state[key] for key in shapes})
    se.double().eval(), plain.double().eval()
    x = image(1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(se(x), plain(x)):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', [name for name in TINY if name != 'SECNN'])  # which has one stage
def test_se_in_chosen_stages(name):
    stages = len(build(name).stage_names)
    chosen = (False,) * (stages - 1) + (True,)
    model = build(name, with_se=chosen)
    for stage, has_se in zip(model.stage_names, chosen):
        assert any(isinstance(module, SELayer) for module in getattr(model, stage).modules()) == has_se
    with pytest.raises(ValueError, match='with_se'):
        build(name, with_se=(True,))


@pytest.mark.parametrize(
    'se_cfg', [dict(variant=v) for v in VARIANTS] + [dict(squeeze='max'), dict(squeeze='none')], ids=str
)
def test_variants_of_the_layer(name, se_cfg):
    model = build(name, se_cfg=se_cfg, se_ratio=8)
    layers = [module for module in model.modules() if isinstance(module, SELayer)]
    widths = VARIANTS[se_cfg.get('variant', 'standard')]
    for layer in layers:
        convs = [getattr(layer, key).conv for key in layer.layers]
        channels = convs[0].in_channels
        assert [conv.out_channels for conv in convs] == [*(w * (channels // 8) for w in widths), channels]
    loss_of(model.train()(image(2, 96, 96))).backward()
    assert all(p.grad is not None for layer in layers for p in layer.parameters())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(out_indices=(9,)), 'out_indices'),
        (dict(frozen_stages=9), 'frozen_stages'),
        (dict(se_cfg=dict(variant='deep')), 'variant'),
        (dict(se_cfg=dict(squeeze='min')), 'squeeze'),
        (dict(se_ratio=100000), 'se_ratio'),
        (dict(se_cfg=dict(ratio=8)), 'give it as se_ratio'),
        (dict(se_cfg=dict(rato=8)), "se_cfg has the key 'rato': choose of act_cfg, "),
        (dict(se_cfg=dict(channels=8)), "se_cfg has the key 'channels': choose of act_cfg, "),
        (dict(se_cfg=dict(act_cfg=dict(type='ReLU'))), 'two configs'),
    ],
    ids=str,
)
def test_bad_arguments(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(name, **kwargs)


@pytest.mark.parametrize('name', ['SEResNet', 'SENet', 'SEInceptionResNetV2', 'SEShuffleNet', 'SEResNetCIFAR-basic'])
def test_fused_and_not(name):
    """Outputs and gradients of residual networks with the fused tail and without it."""
    x = image(2, 96, 96, dtype=torch.float64)
    results = []
    for fused_se in ('torch', False):
        model = build(name, fused_se=fused_se).double().train()
        outs = model(x)
        loss_of(outs).backward()
        results.append((outs, {key: p.grad for key, p in model.named_parameters()}))
    for a, b in zip(results[0][0], results[1][0]):
        torch.testing.assert_close(a, b)
    for key, grad in results[1][1].items():
        torch.testing.assert_close(results[0][1][key], grad, rtol=1e-6, atol=1e-9 * grad.abs().max().item() + 1e-12)
    with pytest.raises(ValueError, match='fused_se'):
        build(name, fused_se='cuda')


@pytest.mark.parametrize('gate', ['Sigmoid', 'ReLU', 'Tanh'])
@pytest.mark.parametrize('zero_init', [True, False])
def test_gates_train(gate, zero_init):
    """Every branch learns; with norms and gates that both start at 0 none would, which is refused."""
    options = dict(se_cfg=dict(act_cfg=(dict(type='ReLU'), dict(type=gate))), zero_init_residual=zero_init, se_ratio=4)
    if zero_init and gate != 'Sigmoid':
        with pytest.raises(ValueError, match='zero_init_residual=False'):
            build('SEResNet', **options)
        return
    model = build('SEResNet', **options).train()
    # nothing starts at zero by an init_cfg
    build('SEResNet', **dict(options, zero_init_residual=True), init_cfg=dict(type='Kaiming', layer='Conv2d'))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        sum((out * out.detach().sin()).mean() for out in model(image(4))).backward()
        optimizer.step()
    dead = [key for key, p in model.named_parameters() if key.endswith('conv2.weight') and not p.grad.any()]
    assert not dead


def test_positions():
    """Where SE stands, from the units of one network with the same weights."""
    x = image(1, 64, 64, dtype=torch.float64)
    for position in SE_POSITIONS:
        model = build('SEResNet-bottleneck', se_position=position).double().eval()
        block = model.layer1[1]
        features = model.layer1[0](model.run_stem(x))
        se = block.se_layer
        branch, shortcut = features, features
        branch = se(branch) if position == 'pre' else branch
        branch = block.norm1(block.conv1(branch)).relu()
        branch = block.norm2(block.conv2(branch)).relu()
        branch = se(branch) if position == '3x3' else branch
        branch = block.norm3(block.conv3(branch))
        branch = se(branch) if position == 'standard' else branch
        shortcut = se(shortcut) if position == 'identity' else shortcut
        expected = (branch + shortcut).relu()
        expected = se(expected) if position == 'post' else expected
        torch.testing.assert_close(block(features), expected)
        assert (block.why_not_fused() is None) == (position == 'standard')
    with pytest.raises(ValueError, match='se_position'):
        build('SEResNet', se_position='middle', with_se=False)
    with pytest.raises(ValueError, match='bottlenecks'):
        build('SEResNet', se_position='3x3')

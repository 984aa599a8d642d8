"""Networks with the fused SE tail against the same networks without it."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.models import ResNet as MMDetResNet
from mmdet.structures import DetDataSample
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from mmpretrain.models import SEResNet as MMPretrainSEResNet
from torch import nn
from torch.nn import functional as F

from se_mm.analysis import stored_bytes
from se_mm.models import SEInceptionResNetV2, SEResNet, SEResNeXt, SEShuffleNet, residual
from se_mm.models.residual import SEResidual
from se_mm.ops import choice, plain_se_tail, triton_passes
from se_mm.utils.config import build_model, load_config
from zoo import build, image


def twins(cls=SEResNet, *args, **kwargs):
    """The same network fused and not, with random batch norm parameters and statistics."""
    torch.manual_seed(0)
    fused, plain = cls(*args, fused_se='torch', **kwargs), cls(*args, fused_se=False, **kwargs)
    fused.init_weights()
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5)
    plain.load_state_dict(fused.state_dict(), strict=True)
    return fused, plain


def gradients(model, x):
    outs = model(x)
    sum((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in outs).backward()
    return outs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


VARIANTS = [
    (SEResNet, 18, dict(norm_eval=False)),
    (SEResNet, 50, dict(norm_eval=True, frozen_stages=1)),
    (SEResNet, 50, dict(norm_eval=False, norm_cfg=dict(type='BN', requires_grad=False))),
    (SEResNet, 18, dict(norm_eval=False, drop_path_rate=0.5)),
    (SEResNet, 50, dict(norm_eval=False, with_cp=True, style='caffe', avg_down=True, deep_stem=True)),
    (SEResNeXt, 50, dict(norm_eval=False, groups=4, se_cfg=dict(bias=False, divisor=8))),
    (SEResNet, 18, dict(norm_eval=False, se_cfg=dict(act_cfg=(dict(type='ReLU'), dict(type='HSigmoid'))))),
]


@pytest.mark.parametrize('cls, depth, kwargs', VARIANTS, ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.slow
def test_same_results_and_state(cls, depth, kwargs, layout):
    fused, plain = (model.double().to(memory_format=layout) for model in twins(cls, depth, base_channels=16, **kwargs))
    x = torch.rand(2, 3, 49, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        memory_format=layout
    )
    results = []
    for model in (fused, plain):
        model.train()
        torch.manual_seed(5)  # of stochastic depth
        results.append(gradients(model, x))
    for a, b in zip(results[0][0], results[1][0]):
        torch.testing.assert_close(a, b)
    assert set(results[0][1]) == set(results[1][1])
    for name, grad in results[1][1].items():
        torch.testing.assert_close(results[0][1][name], grad, rtol=1e-6, atol=1e-9 * grad.abs().max().item() + 1e-12)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value)
    fused.eval(), plain.eval()
    with torch.no_grad():
        for a, b in zip(fused(x), plain(x)):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    'kwargs, reason',
    [
        (dict(), None),
        (dict(norm_cfg=dict(type='SyncBN')), None),
        (dict(fused_se=False), 'fused_se=False'),
        (dict(norm_cfg=dict(type='GN', num_groups=4)), 'GroupNorm'),
        (dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=0.5), position='after_conv2')]), 'plugins'),
    ],
    ids=str,
)
def test_blocks_say_why_they_are_not_fused(kwargs, reason, caplog):
    MMLogger.get_current_instance().addHandler(caplog.handler)
    model = SEResNet(18, base_channels=16, **kwargs)
    said = {block.why_not_fused() for name in model.res_layers for block in getattr(model, name)}
    assert len(said) == 1
    (why,) = said
    assert why is None if reason is None else reason in why
    assert ('without fusion' in caplog.text) == (reason is not None and 'fused_se' not in kwargs)


def test_units_without_a_norm_or_a_sum_say_why_they_are_not_fused():
    shuffle = SEShuffleNet(widen_factor=0.5)
    assert 'concatenation' in shuffle.stage1[0].why_not_fused() and shuffle.stage1[1].why_not_fused() is None
    inception = SEInceptionResNetV2(width=0.25, blocks=(1, 1, 2))
    units = [inception.stage1[1], *inception.stage3[1:3]]
    assert [unit.why_not_fused() for unit in units] == [None, None, 'Identity stands in place of ReLU']
    plain = SEShuffleNet(widen_factor=0.5, with_se=False).stage1[1]
    assert plain.why_not_fused() == 'Identity stands in place of SELayer'


@pytest.mark.parametrize('training', [True, False])
def test_hooks_are_looked_for_once(monkeypatch, training):
    model = SEResNet(18, base_channels=16, norm_eval=False).train(training)
    examined, has_hooks = [], choice.has_hooks
    monkeypatch.setattr(choice, 'has_hooks', lambda module: examined.append(module) or has_hooks(module))
    with torch.set_grad_enabled(training):
        model(torch.rand(2, 3, 32, 32))
    norms = [block.last_norm for name in model.res_layers for block in getattr(model, name)]
    assert set(norms) < set(examined) and len(examined) == len(set(examined))


@pytest.mark.parametrize('name', ['bn2', 'se_layer', 'se_layer.squeeze', 'drop_path', 'relu'])
def test_hooks_see_what_they_hook(name):
    fused, plain = (model.eval() for model in twins(SEResNet, 18, base_channels=16))
    block = fused.layer2[1]
    seen = []
    block.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: seen.append((output, output.clone()))
    )
    assert name.split('.')[-1] in block.why_not_fused() or 'BatchNorm2d has hooks' in block.why_not_fused()
    x = torch.rand(1, 3, 32, 32)
    for a, b in zip(fused(x), plain(x)):
        torch.testing.assert_close(a, b)
    assert seen
    if name not in ('bn2', 'relu'):  # which have always been followed by an operation in place
        assert all(torch.equal(held, given) for held, given in seen)


def test_replaced_parts_are_used():
    fused, plain = twins(SEResNet, 18, base_channels=16)
    x = torch.rand(2, 3, 32, 32)
    for model in (fused, plain):
        model.eval()
        model.layer2[1].se_layer = nn.Identity()
        model.layer3[1].relu = nn.SiLU()
    assert fused.layer2[1].why_not_fused() == 'Identity stands in place of SELayer'
    assert fused.layer3[1].why_not_fused() == 'SiLU stands in place of ReLU'
    for a, b in zip(fused(x), plain(x)):
        torch.testing.assert_close(a, b)


def test_synchronised_norms_reverted_to_one_device_are_fused():
    model = revert_sync_batchnorm(SEResNet(18, norm_cfg=dict(type='SyncBN')))
    assert model.layer1[0].why_not_fused() is None


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.slow
def test_compiled_in_one_graph(training):
    fused, plain = twins(SEResNet, 18, base_channels=16, norm_eval=False)
    fused.double().train(training), plain.double().train(training)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    compiled = torch.compile(fused, backend='aot_eager', fullgraph=True)
    outs, grads = gradients(compiled, x)
    expected, expected_grads = gradients(plain, x)
    for a, b in zip(outs, expected):
        torch.testing.assert_close(a, b)
    for name, grad in expected_grads.items():
        got = grads[f'_orig_mod.{name}']
        torch.testing.assert_close(got, grad, rtol=1e-6, atol=1e-9 * grad.abs().max().item() + 1e-12)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value)


@pytest.mark.parametrize('fused_se', [True, False])
def test_traced_for_one_image_runs_with_more_and_none(fused_se):
    model = SEResNet(18, base_channels=16, fused_se=fused_se).eval()
    traced = torch.jit.trace(model, torch.rand(1, 3, 32, 32))
    for batch in (4, 0):
        x = torch.rand(batch, 3, 32, 32)
        for a, b in zip(traced(x), model(x)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_hooks_on_the_gates_are_called_when_fused():
    fused, _ = twins(SEResNet, 18, base_channels=16)
    block, gates = fused.layer2[1], []
    block.se_layer.conv2.register_forward_hook(lambda module, inputs, output: gates.append(output))
    fused(torch.rand(2, 3, 32, 32))
    assert block.why_not_fused() is None
    assert gates[0].shape == (2, 32) and (gates[0] > 0).all() and (gates[0] < 1).all()


def test_folding_of_batch_norm():
    fused, _ = twins(SEResNet, 50, base_channels=16)
    x = torch.rand(2, 3, 64, 64)
    fused.eval()
    expected = fused(x)
    folded = fuse_conv_bn(copy.deepcopy(fused))
    assert isinstance(folded.layer1[0].bn3, nn.Identity) and folded.layer1[0].why_not_fused() is None
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for a, b in zip(folded(x), expected):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# Units whose kernels do not read the output of the last convolution for its means: in SEInceptionResNetV2 those with
# large maps. The last convolutions of SEResNet are 3x3, those of SEShuffleNet have groups.
KNOWN = {
    'SEResNet': 0, 'SEResNet-bottleneck': 7, 'SEResNeXt': 7, 'SENet': 11, 'SEInceptionResNetV2': 1, 'SEShuffleNet': 0
}  # fmt: skip


@pytest.mark.parametrize('name, fold', [*((name, False) for name in KNOWN), ('SEResNet-bottleneck', True)])
def test_kernels_take_the_means_from_the_input_of_the_last_convolution(name, fold, monkeypatch):
    """In evaluation, where that is less to read."""
    model = build(name, fused_se='triton').double().eval()
    plain = build(name, fused_se=False).double().eval()
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    plain.load_state_dict(model.state_dict())
    if fold:
        model = fuse_conv_bn(model)
    calls = Counter()
    for function in ('row_moments', 'known_moments'):
        monkeypatch.setattr(triton_passes, function, counted(calls, getattr(triton_passes, function)))
    x = image(2, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        outs, expected = model(x), plain(x)
    for out, exact in zip(outs, expected, strict=True):
        assert (out - exact).abs().max() < 1e-10 * exact.abs().max()
    assert calls['known_moments'] == KNOWN[name], calls
    calls.clear()
    model(image(1, 96, 96, dtype=torch.float64))  # with gradients
    assert calls['known_moments'] == 0 < calls['row_moments']


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_means_from_the_input_are_float32(dtype):
    """In mixed precision as well: a norm may subtract similar numbers."""
    unit = build('SEResNet-bottleneck').eval().layer2[1]
    x = torch.rand(2, unit.widths[-1], 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        means = unit.means_from_input(x)
    exact = copy.deepcopy(unit.last_conv).double()(x.double()).mean((2, 3))
    assert means.dtype == torch.float32 and (means - exact).abs().max() < 1e-6 * exact.abs().max()


@pytest.mark.slow
def test_means_from_the_input_compiled_for_any_number_of_images():
    unit = build('SEResNet-bottleneck').eval().layer2[1]
    compiled = torch.compile(lambda x: unit.means_from_input(x), fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        for number in (2, 5, 7):
            x = torch.rand(number, unit.widths[-1], 12, 12, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(compiled(x), unit.last_conv(x).mean((2, 3)))
        with torch.autocast('cpu', torch.bfloat16):
            assert compiled(x.bfloat16()).dtype == torch.float32


def test_exports_read_the_output_of_the_last_convolution(monkeypatch):
    """For any number of images, which decides on the faster way otherwise."""
    unit = build('SEResNet-bottleneck', fused_se='triton').eval().layer2[1]
    monkeypatch.setattr(SEResidual, 'means_from_input', lambda *_: pytest.fail('traced'))
    monkeypatch.setattr(
        residual, 'se_tail', lambda x, identity, norm, gate, *_, **__: plain_se_tail(x, identity, norm, gate)
    )
    x = torch.rand(2, unit.in_channels, 12, 12)
    with torch.no_grad():
        torch.export.export(unit, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.jit.trace(unit, x, check_trace=False)


def counted(calls, function):
    def call(*args, **kwargs):
        calls.update([function.__name__])
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize('norm_eval', [False, True])
def test_training_stores_no_more_activations_than_without_se(norm_eval):
    """SE-ResNet-50 at 224: at most 1 % more than ResNet-50; other implementations store a quarter more."""
    x = torch.rand(1, 3, 224, 224)
    init_default_scope('mmdet')
    models = dict(
        plain=MMDetResNet(50, norm_eval=norm_eval),
        fused=SEResNet(50, norm_eval=norm_eval, fused_se='torch'),
        unfused=SEResNet(50, norm_eval=norm_eval, fused_se=False),
        mmpretrain=MMPretrainSEResNet(50, out_indices=(0, 1, 2, 3), norm_eval=norm_eval),
    )
    stored = {}
    for name, model in models.items():
        model.train()
        stored[name] = stored_bytes(model, lambda model=model: model(x))
    assert stored['fused'] <= 1.01 * stored['plain']
    assert stored['unfused'] > 1.2 * stored['plain'] and stored['mmpretrain'] > 1.2 * stored['plain']


def training_losses(model, steps, dtype):
    """Losses of a classifier of 8 kinds of stripes by orientation, on images drawn anew in every step."""
    torch.manual_seed(0)
    model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8)).to(dtype).train()
    torch.manual_seed(1)
    nn.init.normal_(model[-1].weight, std=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(2)
    axis = torch.arange(32, dtype=torch.float64) / 4
    losses = []
    for _ in range(steps):
        labels = torch.randint(8, (16,), generator=generator)
        angle = labels.double() / 8 * torch.pi
        phase = torch.rand(16, 1, 1, generator=generator, dtype=torch.float64) * 6
        waves = angle.cos()[:, None, None] * axis[:, None] + angle.sin()[:, None, None] * axis + phase
        noise = torch.randn(16, 3, 32, 32, generator=generator, dtype=torch.float64)
        loss = F.cross_entropy(model((waves.sin()[:, None] + noise).to(dtype)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


class LastStage(SEResNet):
    def forward(self, x):
        return super().forward(x)[-1]


@pytest.mark.slow
def test_training_curves_of_se_resnet18():
    """100 steps: fused and plain in float64 coincide; in float32 both stay equally close to that curve."""
    fused, plain = twins(LastStage, 18, base_channels=8, se_ratio=4, norm_eval=False, out_indices=(3,))
    exact = training_losses(copy.deepcopy(plain), 100, torch.float64)
    assert exact[-20:].mean() < 0.5 * exact[:5].mean()  # it learns
    torch.testing.assert_close(training_losses(copy.deepcopy(fused), 100, torch.float64), exact, rtol=1e-4, atol=1e-4)
    distance = {
        name: (training_losses(model, 100, torch.float32) - exact).abs().mean().item()
        for name, model in dict(plain=plain, fused=fused).items()
    }
    assert distance['fused'] < 3 * distance['plain'] + 1e-3, distance


def detector_losses(model, steps):
    """Losses of Faster R-CNN on images of one square, drawn anew in every step."""
    model = model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.005, momentum=0.9)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for step in range(steps):
        size = torch.randint(20, 60, (1,), generator=generator).item()
        x, y = torch.randint(0, 96 - size, (2,), generator=generator).tolist()
        image = torch.randn(1, 3, 96, 96, generator=generator) * 0.2
        image[:, step % 3, y : y + size, x : x + size] += 2
        shape = dict(img_shape=(96, 96), pad_shape=(96, 96), batch_input_shape=(96, 96))
        sample = DetDataSample(metainfo=dict(shape, ori_shape=(96, 96), scale_factor=(1.0, 1.0)))
        boxes = torch.tensor([[x, y, x + size, y + size]], dtype=torch.float32)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([step % 3]))
        torch.manual_seed(step)  # of the sampling of proposals
        loss = model.parse_losses(model.loss(image, [sample]))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.slow
def test_training_curves_of_faster_rcnn_with_frozen_batch_norm():
    """Fused and plain stay as close as plain does to itself with other convolution algorithms."""
    config = Path(__file__).resolve().parents[2] / 'configs' / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
    curves = {}
    for name, fused in (('plain', False), ('reordered', False), ('fused', 'torch')):
        cfg = load_config(config, {'model.backbone.norm_eval': True, 'model.backbone.fused_se': fused})
        torch.manual_seed(0)
        model = build_model(cfg)
        model.init_weights()
        model.train()
        assert not model.backbone.layer2[0].bn2.training
        with torch.backends.mkldnn.flags(enabled=name != 'reordered'):
            curves[name] = detector_losses(model, 60)
    assert curves['plain'][-15:].mean() < 0.8 * curves['plain'][:5].mean()  # it learns
    distance = {name: (curves[name] - curves['plain']).abs().mean().item() for name in ('reordered', 'fused')}
    assert distance['fused'] < 3 * distance['reordered'] + 1e-4, distance

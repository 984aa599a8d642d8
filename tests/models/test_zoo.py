"""What every backbone has to do, tried on a tiny network of each family."""

import copy
import math

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import create_feature_extractor

from se_mm.models import BACKBONES, SELayer
from se_mm.models.blocks import SE_POSITIONS
from se_mm.registry import MODELS
from zoo import STRIDES, TINY, build, image, loss_of


@pytest.fixture(params=TINY)
def name(request):
    return request.param


def test_all_families_are_tried_and_registered():
    assert {cfg['type'] for cfg in TINY.values()} == {cls.__name__ for cls in BACKBONES}
    for cls in BACKBONES:
        assert MODELS.get(cls.__name__) is cls and ROOT_MODELS.get(cls.__name__) is cls


@pytest.mark.parametrize('size', [(97, 131), (110, 75)])
def test_odd_sizes_layouts_and_single_images(name, size):
    model = build(name).double().eval()
    x = image(1, *size, dtype=torch.float64)
    with torch.no_grad():
        outs = model(x)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert len(outs) == len(model.out_indices)
    for a, b in zip(outs, last):
        assert a.isfinite().all() and a.std() > 0
        torch.testing.assert_close(a, b)
    strides = STRIDES.get(TINY[name]['type'])  # two families pool the stem without padding
    floors = TINY[name]['type'] in ('SEVGG', 'SECNN')  # whose pools round down
    for out, stride in zip(outs, strides or ()):
        assert out.shape[2:] == tuple((n // stride) if floors else math.ceil(n / stride) for n in size)


def test_autocast_keeps_close(name):
    model = build(name).eval()
    x = image(1)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            outs = model(x)
    for a, b in zip(outs, exact):
        assert (a.float() - b).norm() < 0.1 * b.norm()
    with torch.autocast('cpu', torch.bfloat16):
        loss_of(out.float() for out in model.train()(image(2))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
def test_compiled_in_one_graph_and_traced(name):
    torch.compiler.reset()  # all networks share one forward, which may be compiled a few times only
    model = build(name).double().eval()
    x = image(2, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend='eager', fullgraph=True)(x)
        traced = torch.jit.trace(model, x, check_trace=False)(x)
    for a, b, c in zip(expected, compiled, traced):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize('training', [True, False])
def test_symbolic_traces_compute_the_same(name, training):
    model = build(name, se_ratio=4).double().train(training)
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert set(traced.state_dict()) == set(model.state_dict())
    x = image(2, 96, 96, dtype=torch.float64)
    results = []
    for module in (model, traced):
        torch.manual_seed(2)  # of mixed branches
        outs = module(x)
        loss_of(outs).backward()
        results.append([*outs, *(p.grad for _, p in sorted(module.named_parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    for key, value in traced.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key])


def test_features_of_torchvisions_extractor(name):
    model = build(name).double().eval()
    stages = [model.stage_names[i] for i in model.out_indices]
    extractor = create_feature_extractor(model, stages).eval()
    x = image(1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        for stage, out in zip(stages, model(x), strict=True):
            torch.testing.assert_close(extractor(x)[stage], out)


@pytest.mark.parametrize('name, kwargs, size', [
    *(('SEResNet-bottleneck', dict(se_position=position), 96) for position in SE_POSITIONS),
    ('SEResNet-bottleneck', dict(fused_se='torch', with_cp=True, deep_stem=True), 96),
    ('SEResNet', dict(se_cfg=dict(squeeze='none')), 96),
    ('SEVGG', dict(num_classes=4, out_indices=None), 224),
    ('SECNN', dict(num_classes=4), 32),
], ids=str)  # fmt: skip
def test_symbolic_traces_of_options(name, kwargs, size):
    model = build(name, **kwargs).double().train()
    traced = torch.fx.symbolic_trace(model)
    x = image(2, size, size, dtype=torch.float64)
    outs = []
    for module in (model, traced):
        torch.manual_seed(2)  # of dropout
        outs.append(module(x))
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_recomputed_activations_give_the_same_gradients(name):
    x = image(2, 96, 96, dtype=torch.float64)
    grads = []
    for with_cp in (False, True):
        model = build(name, with_cp=with_cp).double().train()
        loss_of(model(x.clone().requires_grad_())).backward()
        grads.append({key: p.grad for key, p in model.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad)


def test_frozen_parts_stay(name):
    model = build(name, frozen_stages=1, norm_eval=True).train()
    frozen = [*model.stem_modules(), getattr(model, model.stage_names[0])]
    assert not any(p.requires_grad for part in frozen for p in part.parameters())
    assert not any(module.training for part in frozen for module in part.modules())
    assert not any(module.training for module in model.modules() if isinstance(module, _BatchNorm))
    before = copy.deepcopy(model.state_dict())
    if any(p.requires_grad for p in model.parameters()):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        loss_of(model(image(2))).backward()
        optimizer.step()
    for key, value in model.state_dict().items():
        trained = not any(key.startswith(f'{stage}.') for stage in ('stem', 'conv1', 'bn1', model.stage_names[0]))
        if 'running' in key or not trained:
            assert torch.equal(value, before[key]), key


def test_layers_rise_with_depth(name):
    """For layer-wise decay of learning rates: stem, stages in layers of a few blocks, head."""
    model = build(name)
    layers = [model.get_layer_depth(f'backbone.{key}', 'backbone.') for key, _ in model.named_parameters()]
    number = len({0, *(layer for layer, _ in layers)})
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (number, number + 1)
    assert layers == sorted(layers) and {total for _, total in layers} == {number + 1}
    assert model.get_layer_depth(f'{model.stage_names[0]}.0.conv.weight')[0] == 1
    assert model.get_layer_depth('stem.0.weight')[0] == 0


@pytest.mark.slow
def test_training_lowers_a_loss_and_reaches_all_parameters(name):
    model = build(name, se_ratio=4).train()
    head = nn.LazyLinear(4)
    x, labels = image(4, 96, 96), torch.arange(4)

    def loss():
        return nn.functional.cross_entropy(head(model(x)[-1].mean((2, 3))), labels)

    first = loss()
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    first.backward()
    missing = {key for key, p in model.named_parameters() if p.grad is None}
    assert not missing
    assert any(isinstance(module, SELayer) for module in model.modules())
    for _ in range(5):
        optimizer.step()
        optimizer.zero_grad()
        last = loss()
        last.backward()
    assert last < first
    zero = [key for key, p in model.named_parameters() if 'se_layer' in key and not p.grad.any()]
    # a squeezed channel may rest below its ReLU for all images; a whole layer may not
    assert not [key for key in zero if 'conv2' in key], zero


def test_folding_of_batch_norm(name):
    model = build(name).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = image(1)
    with torch.no_grad():
        expected = model.double()(x.double())
        folded = fuse_conv_bn(copy.deepcopy(model))(x.double())
    for a, b in zip(folded, expected):
        torch.testing.assert_close(a, b)


def test_blocks_are_recomputed():
    """Also the first one of a network without stem, whose input needs no gradient."""
    model = build('SEVGG', with_cp=True).train()
    calls = []
    for module in model.modules():
        if isinstance(module, SELayer):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_of(model(image(1))).backward()
    assert len(calls) == 2 * sum(isinstance(module, SELayer) for module in model.modules())

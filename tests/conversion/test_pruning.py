"""Pruned networks against the unpruned ones with the removed channels' weights set to zero."""

import copy

import mmcv.ops  # noqa: F401  registers deformable convolutions
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from se_mm.conversion.importance import GateImportance, check_importance
from se_mm.conversion.pruned import consumer_changes
from se_mm.conversion.pruning import Pruner, multiply_adds, share_for, smaller_multiply_adds, why_not_prunable
from se_mm.models import SELayer
from se_mm.models.architecture import arguments_of, misfits
from se_mm.registry import MODELS
from se_mm.utils import InputError
from zoo import TINY, build, image

BASIC, BOTTLENECK, CIFAR = 'SEResNet', 'SEResNet-bottleneck', dict(se_ratio=4)
NETWORKS = [
    (BASIC, {}),
    (BASIC, dict(style='caffe', with_se=False)),
    (BOTTLENECK, {}),
    (BOTTLENECK, dict(deep_stem=True, avg_down=True)),
    (BOTTLENECK, dict(with_se=[[True, False, True], [False, False, True, True]], strides=(1, 1), dilations=(1, 2))),
    *((BOTTLENECK, dict(se_position=position)) for position in ('pre', 'post', 'identity', '3x3')),
    (BOTTLENECK, dict(se_cfg=dict(variant='slow_squeeze_excite', squeeze='none'))),
    (BOTTLENECK, dict(se_cfg=dict(variant='bump', divisor=2), se_ratio=2)),
    (BOTTLENECK, dict(se_cfg=dict(squeeze_channels=5))),
    ('SEResNeXt', {}),
    ('SENet', {}),
    ('SEResNetCIFAR-basic', CIFAR),
    ('SEResNetCIFAR-preact', CIFAR),
    ('SEResNetCIFAR-bottleneck', CIFAR),
]


class Whole(nn.Module):
    """A model with a backbone, as OpenMMLab's have it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)


def random_network(name, **kwargs):
    """A network in double precision whose batch norms do something."""
    model = build(name, **kwargs).double().eval()
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def by_number(group):
    """An importance that depends on the number of channels alone."""
    return torch.rand(len(group[0].idxs), generator=torch.Generator().manual_seed(len(group[0].idxs)))


PLUGINS = [dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv2')]


def prune(model, share=0.5, round_to=1, keep=None, score=by_number):
    """Prune in place; the arguments that build what is left."""
    pruner = Pruner(Whole(model), lambda model, x: model(x), image(1, 64, 64, dtype=torch.float64), keep)
    left = pruner.targets(share, round_to)
    pruner.prune(left, score)
    return pruner.widths(left).arguments()


def kept_places(model):
    """For each parameter of the pruned network, which elements of the unpruned one it has."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
    prune(model)
    return {name: parameter.detach().long() for name, parameter in model.named_parameters()}


def stage_places(model, pruned, places):
    """Channels of each output that are left."""
    found = []
    for i in model.out_indices:
        last = list(getattr(model, model.stage_names[i]).named_children())[-1]
        number, unit = last
        names = {module: name for name, module in model.named_modules()}
        weight = unit[0] if isinstance(unit, nn.Sequential) else unit.last_conv
        kept = (
            places[f'{names[weight]}.weight'].flatten(1)
            if weight.weight.dim() > 1
            else places[f'{names[weight]}.weight'][:, None]
        )
        found.append((kept[:, 0] // weight.weight[0].numel()).tolist())
    return found


@pytest.mark.parametrize('name, options', NETWORKS)
def test_pruned_equals_zeros(name, options):
    model = random_network(name, **options)
    places, zeroed, pruned = kept_places(model), copy.deepcopy(model), copy.deepcopy(model)
    arguments = prune(pruned)
    for path, parameter in zeroed.named_parameters():
        kept = torch.zeros(parameter.numel(), dtype=torch.bool)
        kept[places[path].flatten()] = True
        parameter.data.mul_(kept.view_as(parameter))
    assert sum(map(torch.numel, places.values())) < 0.6 * sum(p.numel() for p in model.parameters())

    built = build(name, **{**options, **arguments}).double()
    built.load_state_dict(pruned.state_dict(), strict=True)
    for mode in (False, True):  # batch norms by running statistics, and by those of the batch
        outs = [network.train(mode)(image(2, 64, 64, dtype=torch.float64)) for network in (zeroed, built)]
        weights = [
            torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype) for out in outs[1]
        ]
        stages = stage_places(model, built, places)
        zeros = [out[:, stage] for out, stage in zip(outs[0], stages)]
        for a, b in zip(zeros, outs[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        for found in (zeros, outs[1]):
            sum((out * weight).sum() for out, weight in zip(found, weights)).backward()
        expected = dict(zeroed.named_parameters())
        for path, parameter in built.named_parameters():
            gradient = expected[path].grad.flatten()[places[path]]
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-8)
        zeroed.zero_grad(), built.zero_grad()


def test_what_stays():
    model = build(BOTTLENECK, frozen_stages=1)
    arguments = prune(model.double(), round_to=8)
    assert arguments == dict(stage_channels=[16, 64, 64], mid_channels=[[[16, 16]] * 3, [[16, 16]] * 4])
    arguments = prune(build(BOTTLENECK).double(), keep='stages')
    assert arguments == dict(stage_channels=[16, 64, 128], mid_channels=[[[8, 8]] * 3, [[16, 16]] * 4])
    arguments = prune(build(BOTTLENECK).double(), keep='inner', round_to=24)
    assert arguments == dict(stage_channels=[16, 24, 72], mid_channels=[[[16, 16]] * 3, [[32, 32]] * 4])
    arguments = prune(build('SEResNeXt').double(), share=0.99)  # groups of one channel; SE needs 16
    assert arguments['mid_channels'] == [[[4, 4]] * 3, [[4, 4]] * 4] and arguments['stage_channels'] == [1, 16, 16]
    with pytest.raises(InputError, match='nothing can be pruned'):
        prune(build(BOTTLENECK, frozen_stages=2).double())


def test_equal_widths_by_chance():
    """A shortcut that was a convolution stays one."""
    widths = dict(stage_channels=[16, 16, 16], mid_channels=[[8] * 3, [8] * 4])
    model = build(BOTTLENECK, strides=(1, 1), dilations=(1, 2), **widths)
    assert [model.layer1[0].downsample is None, model.layer2[0].downsample is None] == [False, False]
    assert model.layer1[1].downsample is None


@pytest.mark.parametrize(
    'name, options, words',
    [
        (BOTTLENECK, dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True)), 'layer2.0.conv2 is'),
        (BOTTLENECK, dict(norm_cfg=dict(type='GN', num_groups=4)), 'gn1 is GroupNorm'),
        (BOTTLENECK, dict(plugins=PLUGINS), 'has plugins'),
        (BOTTLENECK, dict(conv_cfg=dict(type='ConvWS')), 'conv1 is ConvWS2d'),
        (BOTTLENECK, dict(deploy=True), 'is deployed'),
        (BOTTLENECK, dict(out_indices=(0,)), 'set num_stages=1'),
        ('SEVGG', {}, 'SEVGG is none of SEResNet'),
        ('SEShakeShake', {}, 'SEShakeShake is none of SEResNet'),
    ],
)
def test_refused(name, options, words):
    assert words in why_not_prunable(build(name, **options))
    assert why_not_prunable(build(BOTTLENECK)) is None


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(stage_channels=[64, 64]), r'stage_channels=\[64, 64\] needs 3 entries'),
        (dict(stage_channels=[16, 64, 0]), 'stage_channels=0: choose a whole number'),
        (dict(mid_channels=[[8] * 3]), 'mid_channels=.* needs 2 entries'),
        (dict(mid_channels=[[8] * 2, [8] * 4]), r'mid_channels\[0\]=\[8, 8\] needs 3 entries'),
        (dict(mid_channels=[[8] * 3, [[8, 8, 8]] * 4]), r'mid_channels\[1\] has \(8, 8, 8\): give 2 numbers'),
        (dict(mid_channels=[[8] * 3, [[8, 6]] * 4]), r'mid_channels\[1\] has 6, which is no multiple of groups=4'),
    ],
)
def test_wrong_widths(arguments, words):
    with pytest.raises(ValueError, match=words):
        build('SEResNeXt', **arguments)


def test_narrower_stage_after_a_padded_shortcut():
    with pytest.raises(ValueError, match='12 channels follow 16'):
        build('SEResNetCIFAR-basic', stage_channels=[16, 16, 12, 64])


def test_importance_of_gates():
    """By a loop over units: abs(gate * gamma), a mean over the units that have the channel."""
    model = random_network('SEResNetCIFAR-basic', **CIFAR)
    generator = torch.Generator().manual_seed(3)
    paths = [path for path, module in model.named_modules() if isinstance(module, SELayer)]
    widths = [16, 16, 32, 32, 64, 64]
    means = {path: torch.randn(width, generator=generator, dtype=torch.float64) for path, width in zip(paths, widths)}
    scores = {
        path: (mean * model.get_submodule(path.rpartition('.')[0]).norm2.weight).abs() for path, mean in means.items()
    }
    seen = {}

    def remembered(group):
        found = GateImportance(model, means, gamma=True)(group)
        seen.setdefault(len(found), []).append(found)
        return found

    prune(model, keep='inner', score=remembered)
    first = torch.stack([score[:16] for score in scores.values()]).mean(0)
    second = torch.stack([score[16:32] for score in list(scores.values())[2:]]).mean(0)
    third = torch.stack([score[32:] for score in list(scores.values())[4:]]).mean(0)
    for expected, found in zip([first, second], [seen[16][0], seen[16][1]], strict=True):
        torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(seen[32][0], third.detach())


@pytest.mark.parametrize(
    'name, kept, options, words',
    [
        ('gate', None, dict(with_se=False), 'the network has no SE layer'),
        ('gate', 'stages', {}, 'gates rank the channels that --keep stages keeps'),
        ('gate', 'inner', dict(se_position='3x3'), 'gates rank the channels that --keep inner keeps'),
        ('gate-gamma', None, dict(se_position='post'), 'no batch norm with weights stands before layer1.0.se_layer'),
    ],
)
def test_importance_without_gates(name, kept, options, words):
    model = build(BOTTLENECK, **options)
    with pytest.raises(InputError, match=words):
        check_importance(name, model, kept)
    check_importance('l1', model, kept)


@pytest.mark.parametrize(
    'model, changes',
    [
        (
            dict(neck=dict(type='FPN', in_channels=[8, 16]), bbox_head=dict(in_channels=16)),
            dict(neck=dict(in_channels=[4, 6])),
        ),
        (dict(neck=dict(type='GlobalAveragePooling'), head=dict(in_channels=16)), dict(head=dict(in_channels=6))),
        (dict(neck=dict(type='LinearNeck', in_channels=16), head=dict(in_channels=16)), dict(neck=dict(in_channels=6))),
        (
            dict(
                neck=[dict(type='GlobalAveragePooling'), dict(type='LinearNeck', in_channels=16)],
                head=dict(in_channels=5),
            ),
            dict(neck=[dict(type='GlobalAveragePooling'), dict(type='LinearNeck', in_channels=6)]),
        ),
        (dict(neck=dict(in_channels=[1, 2]), head=dict(in_channels=16)), {}),
    ],
)
def test_what_follows(model, changes):
    """The first part behind the backbone that names channels follows, and no other part with an equal number."""
    assert consumer_changes(model, [8, 16], [4, 6]) == changes


def test_pruned_weights_are_recognised():
    for name in (BASIC, BOTTLENECK, 'SEResNeXt', 'SENet'):
        model = build(name).double()
        assert arguments_of(model.state_dict())['mid_channels'] is None
        arguments = prune(model, share=0.3)
        found = arguments_of(model.state_dict())
        assert {key: found[key] for key in arguments} == arguments
        assert any('stage_channels=' in text for text in misfits(build(name), found))
        again = build(name, **{key: found[key] for key in ('stage_channels', 'mid_channels')})
        again.double().load_state_dict(model.state_dict(), strict=True)


def test_multiply_adds():
    cfg = dict(type='se_mm.SEResNet', **{key: value for key, value in TINY[BASIC].items() if key != 'type'})
    model = MODELS.build(cfg).double()
    whole = multiply_adds(model, (64, 64))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image(1, 64, 64, dtype=torch.float64))
    assert whole == counter.get_total_flops() // 2
    pruner = Pruner(Whole(model), lambda model, x: model(x), image(1, 64, 64, dtype=torch.float64))

    def count(share):
        return smaller_multiply_adds(cfg, pruner.widths(pruner.targets(share)), (64, 64))

    share = share_for(0.5, whole, count)
    assert 0.2 < share < 0.5 and 0.45 * whole < count(share) <= 0.5 * whole
    with pytest.raises(InputError, match='of the multiply-adds stay'):
        share_for(1e-6, whole, count)

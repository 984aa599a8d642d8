"""Weights that do not fit: the errors, and what their advice leads to."""

import ast
import logging
import re

import mmcv.ops  # noqa: F401  registers DCNv2
import pytest
import timm
import torch

from se_mm.conversion import save_weights
from se_mm.models import SEResNet
from se_mm.registry import MODELS
from se_mm.utils import InputError
from se_mm.weights import load_backbone
from test_formats import WIDE

MISFITS = [
    ('legacy_seresnet50', dict(), ["style='caffe' (is 'pytorch')", 'stem_pool_ceil_mode=True (is False)']),
    ('seresnet50', dict(stem_pool_ceil_mode=True), ['stem_pool_ceil_mode=False (is True)']),
    ('seresnet50', dict(depth=101), ['depth=50 (is 101)']),
    ('seresnet50', dict(depth=34), ['depth=50 (is 34)']),
    ('seresnext26d_32x4d', dict(), ['blocks of its stages to (2, 2, 2, 2), which no depth here has']),
    ('seresnet50', dict(se_ratio=8), ['se_ratio=16 (is 8)']),
    ('seresnet50', dict(se_cfg=dict(bias=False)), ["se_cfg={} (is {'bias': False})"]),
    ('seresnet50', dict(with_se=(False, True, True, True)), ['with_se=(True, True, True, True)']),
    ('seresnet50', dict(se_position='post'), ["set se_position='standard' (is 'post')"]),
    ('seresnet50', dict(se_cfg=dict(squeeze='max')), ["set se_cfg={} (is {'squeeze': 'max'})"]),
    ('seresnet50', dict(deploy=True), ['deploy=False (is True)']),
    ('seresnet50', dict(deep_stem=True, avg_down=True), ['deep_stem=False (is True)', 'avg_down=False (is True)']),
    ('seresnet50', dict(in_channels=1), ['in_channels=3 (is 1)']),
    ('seresnet18', dict(depth=18), ["se_cfg={'divisor': 8} (is {})"]),
    ('seresnext50_32x4d', dict(type='se_mm.SEResNeXt', groups=64), ['groups=32 (is 64)']),
    ('seresnext50_32x4d', dict(), ["type='SEResNeXt' (is 'SEResNet')"]),
]


@pytest.mark.parametrize('name, arguments, words', MISFITS, ids=str)
def test_misfits_say_what_to_set(name, arguments, words, tmp_path):
    path = save_weights(timm.create_model(name).state_dict(), tmp_path / 'weights.pth')
    model = MODELS.build(dict(dict(type='se_mm.SEResNet', depth=50), **arguments))
    with pytest.raises(InputError) as caught:
        load_backbone(model, str(path))
    assert 'weights.pth' in str(caught.value) and 'is None' not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_networks_that_do_not_exist_here_are_refused(tmp_path):
    path = save_weights(timm.create_model('legacy_seresnet18').state_dict(), tmp_path / 'weights.pth')
    with pytest.raises(InputError, match=r'weights\.pth \(timm legacy\) has no equal here: .* one more ReLU'):
        load_backbone(SEResNet(18), str(path))


def test_unmatched_tensors_are_an_error_unless_allowed(tmp_path):
    state = SEResNet(50).state_dict()
    del state['layer3.2.conv2.weight']
    state['layer3.2.extra'] = torch.ones(1)
    path = str(save_weights(state, tmp_path / 'weights.pth'))
    with pytest.raises(InputError, match=r'1 \(layer3\.2\.conv2\.weight\) are missing.*1 \(layer3\.2\.extra\)'):
        load_backbone(SEResNet(50), path)
    report = load_backbone(SEResNet(50), path, strict=False)
    assert (report.fresh, report.left_over) == (['layer3.2.conv2.weight'], ['layer3.2.extra'])
    with pytest.raises(InputError, match=r'1 \(conv1\.weight\) have another shape'):
        load_backbone(SEResNet(50, in_channels=4), path, strict=False)


def test_several_backbones_need_a_prefix(tmp_path):
    state = SEResNet(18).state_dict()
    both = {f'{who}.{name}': tensor for who in ('teacher', 'student') for name, tensor in state.items()}
    path = str(save_weights(both, tmp_path / 'weights.pth'))
    with pytest.raises(InputError, match=r"several backbones: choose one by init_cfg\.prefix, of \['teacher\.', 'stu"):
        load_backbone(SEResNet(18), path)
    assert load_backbone(SEResNet(18), path, prefix='student').fresh == []
    with pytest.raises(InputError, match=r"starts with prefix='pupil\.'.*'student', 'teacher'"):
        load_backbone(SEResNet(18), path, prefix='pupil.')


def test_surplus_layers_of_a_backbone_are_an_error(tmp_path):
    """A pool with a convolution, as in the stem of timm's resnetrs50."""
    with torch.device('meta'):
        names = timm.create_model('resnetrs50').state_dict()
    assert any(name.startswith('maxpool.') for name in names)
    state = dict(SEResNet(50).state_dict(), **{'maxpool.0.weight': torch.ones(1), 'fc.weight': torch.ones(1)})
    path = str(save_weights(state, tmp_path / 'weights.pth'))
    with pytest.raises(InputError, match=r'1 \(maxpool\.0\.weight\) of the checkpoint have no place'):
        load_backbone(SEResNet(50), path)
    assert 'maxpool.0.weight' in load_backbone(SEResNet(50), path, strict=False).left_over


def follow(arguments, error):
    """The arguments changed as an error says."""
    changed = dict(arguments)
    advice = str(error).partition(': set ')[2]
    pattern = r'(\w+)=(.+?)(?: without ([\w, ]+?))?(?: \(is .+?\))?(?:, (?=\w+=)|$)'
    for key, value, without in re.findall(pattern, advice):
        changed[key] = ast.literal_eval(value)
        changed = {k: v for k, v in changed.items() if k not in without.split(', ')}
    return dict(changed, type=f'se_mm.{changed["type"].rpartition(".")[2]}')


@pytest.mark.parametrize(
    'name, arguments',
    [
        ('wide_resnet50_2', dict(type='se_mm.SEResNet', depth=50)),
        ('wide_resnet101_2', dict(type='se_mm.SEResNet', depth=50, base_channels=128)),
        ('wide_resnet50_2', dict(type='se_mm.SEResNeXt', depth=50, groups=32, base_width=4)),
        ('wide_resnet50_2', dict(type='se_mm.SENet')),
        ('resnet50', dict(type='se_mm.SEResNet', depth=50, **WIDE)),
        ('resnext50_32x4d', dict(type='se_mm.SEResNet', depth=50, **WIDE)),
        ('resnext101_64x4d', dict(type='se_mm.SEResNet', depth=50)),
        ('seresnet152d', dict(type='se_mm.SENet')),
        ('legacy_senet154', dict(type='se_mm.SEResNet', depth=50)),
    ],
    ids=str,
)
@pytest.mark.slow
def test_advice_leads_to_success_at_once(name, arguments, tmp_path):
    path = str(save_weights(timm.create_model(name).state_dict(), tmp_path / 'weights.pth'))
    with pytest.raises(InputError, match=': set ') as caught:
        load_backbone(MODELS.build(arguments), path)
    load_backbone(MODELS.build(follow(arguments, caught.value)), path)


SMALL = dict(type='se_mm.SEResNet', depth=50, base_channels=16)
FIFTY = dict(SMALL, base_channels=64)
HEAD = dict(type='se_mm.SEResLayer', depth=50, base_channels=16)
C4 = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
GN = dict(type='GN', num_groups=8)
DCN = dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True))


@pytest.mark.parametrize(
    'weights, model, advice',
    [
        (dict(SMALL, se_cfg=dict(variant='bump')), dict(SMALL, with_se=False), dict(se_cfg=dict(variant='bump'))),
        (dict(SMALL, se_ratio=4), dict(SMALL, with_se=False), dict(se_ratio=4)),
        (dict(SMALL, **C4), dict(SMALL, depth=101, **C4), dict(depth=50)),
        (dict(FIFTY, depth=18), dict(FIFTY, type='se_mm.SEResNeXt', groups=1), dict(depth=18, type='SEResNet')),
        (SMALL, dict(HEAD, depth=18, base_channels=8), dict(depth=50, base_channels=16)),
        (dict(SMALL, se_ratio=4), dict(HEAD, with_se=False), dict(with_se=True, se_ratio=4)),
    ],
    ids=str,
)
def test_advice_is_complete(weights, model, advice, tmp_path):
    torch.save(MODELS.build(weights).state_dict(), tmp_path / 'a.pth')
    with pytest.raises(InputError, match=': set ') as caught:
        load_backbone(MODELS.build(model), tmp_path / 'a.pth')
    followed = follow(model, caught.value)
    assert dict(followed, type=followed['type'].rpartition('.')[2]).items() >= advice.items()
    load_backbone(MODELS.build(followed), tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'weights, model, words',
    [
        (dict(SMALL, norm_cfg=GN), SMALL, 'set norm_cfg of type GN (is BN)'),
        (SMALL, dict(SMALL, norm_cfg=GN), 'set norm_cfg of type BN (is GN)'),
        (dict(SMALL, norm_cfg=GN), HEAD, 'set norm_cfg of type GN (is BN)'),
        (dict(SMALL, **DCN), SMALL, 'set dcn, which the weights have in the stages (False, True, True, True)'),
        (dict(SMALL, **DCN), HEAD, 'set dcn, which the weights have in the stages (True,)'),
        (dict(SMALL, **C4), SMALL, 'set num_stages=3 (is 4)'),
    ],
    ids=str,
)
def test_other_layers_are_named(weights, model, words, tmp_path):
    torch.save(MODELS.build(weights).state_dict(), tmp_path / 'a.pth')
    with pytest.raises(InputError, match=re.escape(words)):
        load_backbone(MODELS.build(model), tmp_path / 'a.pth')


def test_what_strict_false_allows_is_a_warning(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('se_mm.weights.loading.print_log', lambda text, level, **_: logged.append((level, text)))
    state = SEResNet(18).state_dict()
    del state['layer3.1.conv1.weight']
    torch.save(state, tmp_path / 'a.pth')
    load_backbone(SEResNet(18), str(tmp_path / 'a.pth'), strict=False)
    warnings = [text for level, text in logged if level == logging.WARNING]
    assert any('1 (layer3.1.conv1.weight) are missing and start afresh' in text for text in warnings)


BLOCK = 'layer1.0.'


@pytest.mark.parametrize(
    'name, shape',
    [
        *((name, shape) for name in ('conv1.weight', f'{BLOCK}conv1.weight') for shape in ((), (3,))),
        *((f'{BLOCK}conv2.weight', shape) for shape in ((), (3,), (0, 0, 0, 0))),
        *((f'{BLOCK}conv3.weight', shape) for shape in ((), (0,))),
        *((f'{BLOCK}se_layer.conv1.conv.weight', shape) for shape in ((), (3,), None)),
        (f'{BLOCK}se_layer.conv2.conv.weight', None),
    ],
)
def test_shapes_of_no_convolution_and_incomplete_se(name, shape, tmp_path):
    """One line, whichever tensor it is; ``None`` leaves the tensor out."""
    model = SEResNet(50, base_channels=16)
    state = model.state_dict()
    state.pop(name)
    if shape is not None:
        state[name] = torch.ones(shape)
    torch.save(state, tmp_path / 'a.pth')
    found = re.escape(f'{name} has shape {shape}')
    with pytest.raises(InputError, match=f'{found}|is incomplete|does not fit') as caught:
        load_backbone(model, tmp_path / 'a.pth')
    assert f'checkpoint {tmp_path / "a.pth"}' in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', [3, None, (1, 2), b'conv1.weight', 'x' * 1001])
def test_names_that_are_no_names(name, tmp_path):
    torch.save({**SEResNet(18).state_dict(), name: torch.ones(2)}, tmp_path / 'a.pth')
    with pytest.raises(InputError, match=r'a\.pth is damaged .*: not all names of its tensors are text of up to 1000'):
        load_backbone(SEResNet(18), tmp_path / 'a.pth')


def test_factors_that_are_no_numbers(tmp_path):
    torch.save({'conv1/bn.0': torch.ones(2), 'conv1/bn.2': torch.ones(2)}, tmp_path / 'a.pth')
    with pytest.raises(InputError, match=r'a\.pth: conv1/bn\.2 is a factor of statistics, and not one number'):
        load_backbone(SEResNet(18), tmp_path / 'a.pth')

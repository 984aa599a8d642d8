"""Which arguments of a residual network its weights stand for."""

from __future__ import annotations

import re
from collections import defaultdict

from torch import Tensor, nn

from se_mm.models.se_layer import VARIANTS, squeezed_width

from .formats import Format

DEPTHS = {
    ('basic', (2, 2, 2, 2)): 18,
    ('basic', (3, 4, 6, 3)): 34,
    ('bottleneck', (3, 4, 6, 3)): 50,
    ('bottleneck', (3, 4, 23, 3)): 101,
    ('bottleneck', (3, 8, 36, 3)): 152,
}


def arguments_of(tensors: dict[str, Tensor]) -> dict:
    """Arguments of SEResNet, SEResNeXt or SENet that a backbone's tensors (with our names) have.

    Args:
        tensors: of a residual network; those of its first stage must be there.

    Returns:
        ``type``, ``depth`` (None if there is no such network), ``blocks`` of each stage, ``in_channels``,
        ``stem_channels``, ``base_channels``, ``deep_stem``, ``avg_down``, ``groups`` and ``base_width`` of a
        SEResNeXt, ``with_se`` of each stage, and, of networks with SE, ``se_ratio``, ``se_cfg``.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = defaultdict(set)
    for name in shapes:
        if found := re.match(r'layer(\d+)\.(\d+)\.conv1\.', name):
            blocks[int(found[1])].add(int(found[2]))
    counts = tuple(len(blocks[stage]) for stage in sorted(blocks))
    bottleneck = 'layer1.0.conv3.weight' in shapes
    arguments = dict(blocks=counts)

    deep_stem = 'stem.0.weight' in shapes
    first, last = ('stem.0.weight', 'stem.6.weight') if deep_stem else ('conv1.weight', 'conv1.weight')
    arguments.update(deep_stem=deep_stem)
    if first in shapes and last in shapes:
        arguments.update(in_channels=shapes[first][1], stem_channels=shapes[last][0])
    width, per_group = shapes['layer1.0.conv2.weight'][:2]
    narrow = shapes['layer1.0.conv1.weight'][0]
    groups = narrow // per_group
    channels = shapes['layer1.0.conv3.weight'][0] if bottleneck else width
    arguments['base_channels'] = channels // 4 if bottleneck else channels
    halved = groups > 1 and narrow * 2 == width
    arguments['type'] = 'SENet' if halved else 'SEResNeXt' if groups > 1 else 'SEResNet'
    depth = DEPTHS.get(('bottleneck' if bottleneck else 'basic', counts))
    arguments['depth'] = 154 if halved and depth == 152 else depth
    base_width = width * 64 // (arguments['base_channels'] * groups)
    if groups > 1 or base_width != 64:  # wide residual networks are SEResNeXt with one group
        arguments.update(type='SENet' if halved else 'SEResNeXt', groups=groups, base_width=base_width)
    downsample = [name for name in shapes if re.fullmatch(r'layer\d+\.0\.downsample\.[01]\.weight', name)]
    convs = [name for name in downsample if len(shapes[name]) == 4]
    if convs:
        arguments['avg_down'] = convs[0].endswith('downsample.1.weight')

    squeezed = {}  # by channels
    with_se = []
    for stage in sorted(blocks):
        layers = sorted(name for name in shapes if re.match(rf'layer{stage}\.0\.se_layer\.conv\d\.conv\.weight', name))
        with_se.append(bool(layers))
        if layers:
            squeezed[shapes[layers[0]][1]] = [shapes[name][0] for name in layers[:-1]]
            bias = layers[0].replace('weight', 'bias') in shapes
    arguments['with_se'] = tuple(with_se)
    if squeezed:
        widths = squeezed[max(squeezed)]
        variant = next(
            (n for n, v in VARIANTS.items() if len(v) == len(widths) and len({w / f for w, f in zip(widths, v)}) == 1),
            'standard',
        )
        base = {c: w[0] // VARIANTS[variant][0] for c, w in squeezed.items()}
        arguments['se_ratio'] = ratio = max(base) // base[max(base)]
        arguments['se_cfg'] = se_cfg = {}
        divisor = next(
            (d for d in (1, 8, 4, 2, 16, 32) if all(w == squeezed_width(c, ratio, d) for c, w in base.items())), 1
        )
        if divisor != 1:
            se_cfg['divisor'] = divisor
        if variant != 'standard':
            se_cfg['variant'] = variant
        if not bias:
            se_cfg['bias'] = False
    return arguments


def expected_arguments(tensors: dict[str, Tensor], format: Format) -> dict:
    """Arguments that weights of a format need: those of their shapes and those that the format implies."""
    arguments = arguments_of(tensors)
    if format.stem_pool_ceil_mode is not None:
        arguments['stem_pool_ceil_mode'] = format.stem_pool_ceil_mode
    if format.caffe_style is not None and 'layer1.0.conv3.weight' in tensors:
        caffe = format.caffe_style == 'always' or (
            format.caffe_style == 'SE-ResNet' and arguments['type'] == 'SEResNet'
        )
        arguments['style'] = 'caffe' if caffe else 'pytorch'
    return arguments


def constructor_arguments(arguments: dict) -> dict:
    """The part of :func:`expected_arguments` that is not the default, ready for a config."""
    senet = arguments['type'] == 'SENet'
    defaults = dict(
        in_channels=3,
        stem_channels=128 if senet else arguments['base_channels'],
        base_channels=64,
        deep_stem=senet,
        avg_down=False,
        groups=64 if senet else 32,
        base_width=4,
        with_se=(True,) * len(arguments['blocks']),
        se_ratio=16,
        se_cfg={},
        stem_pool_ceil_mode=senet,
        style='pytorch',
    )
    chosen = {key: value for key, value in arguments.items() if key in defaults and value != defaults[key]}
    if not any(arguments['with_se']):
        chosen.pop('with_se', None)
    return dict(type=f'se_mm.{arguments["type"]}', depth=arguments['depth'], **chosen)


def differences(expected: dict, model: nn.Module) -> list[str]:
    """What to set in the config of a residual network so that it fits weights.

    Args:
        expected: of the weights, see :func:`expected_arguments`.
        model: a SEResNet, SEResNeXt or SENet, whose own arguments are read from its tensors.
    """
    actual = dict(arguments_of(model.state_dict()), style=model.style, stem_pool_ceil_mode=model.maxpool.ceil_mode)
    stages = len(actual['blocks'])
    changes = []
    expected = dict(expected, blocks=expected['blocks'][:stages])
    if expected['depth'] is None:
        changes.append(f'blocks of its stages to {expected["blocks"]}, which no depth here has')
    elif expected['blocks'] != actual['blocks'] or (stages == 4 and expected['depth'] != actual['depth']):
        changes.append(f'depth={expected["depth"]} (is {model.depth})')
    for key, value in expected.items():
        if key in ('blocks', 'depth') or key not in actual or value == actual[key]:
            continue
        if key == 'with_se':
            value, own = value[:stages], actual['with_se']
            if value == own or not any(value):  # SE of a plain network's weights starts afresh
                continue
        changes.append(f'{key}={value!r} (is {actual[key]!r})')
    return changes

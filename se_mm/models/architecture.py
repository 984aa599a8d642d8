"""Which residual network weights belong to: the arguments that their names and shapes stand for."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict

from torch import Tensor, nn

from .resnet import SEResNet, SEResNeXt
from .se_layer import VARIANTS, SELayer, squeezed_width
from .senet import SENet
from .shared_head import SEResLayer

NETWORKS = {network.__name__: network for network in (SEResNet, SEResNeXt, SENet)}
DEPTHS = {
    (block, counts): depth for network in NETWORKS.values() for depth, (block, counts) in network.arch_settings.items()
}
DIVISORS = (1, 8, 4, 2, 16, 32)  # of squeezed widths, the usual ones first
NORMS = {'bn': 'BN', 'gn': 'GN', 'in': 'IN', 'ln': 'LN'}  # by name
# Options of SE that tensors show, those that no tensor shows, and their defaults.
SHOWN_SE, HIDDEN_SE = (
    {key: inspect.signature(SELayer).parameters[key].default for key in keys}
    for keys in (('divisor', 'variant', 'bias'), ('squeeze', 'act_cfg'))
)


def defaults_of(network: type[SEResNet]) -> dict:
    """The default of every argument of a residual network, by its name."""
    defaults = {}
    for cls in reversed(network.__mro__):
        if issubclass(cls, SEResNet):
            parameters = inspect.signature(cls.__init__).parameters.values()
            defaults.update({p.name: p.default for p in parameters if p.default is not p.empty})
    return defaults


def chosen_se(se_cfg: dict, defaults: dict) -> dict:
    """The options of SE among those of ``defaults`` that are others."""
    chosen = {key: se_cfg[key] for key in defaults if key in se_cfg}
    if 'act_cfg' in chosen:
        chosen['act_cfg'] = tuple(map(dict, chosen['act_cfg']))
    return {key: value for key, value in chosen.items() if value != defaults[key]}


def is_residual(tensors: dict[str, Tensor]) -> bool:
    """Whether a backbone's tensors are named as those of SEResNet, SEResNeXt and SENet."""
    return 'layer1.0.conv2.weight' in tensors


def arguments_of(tensors: dict[str, Tensor]) -> dict:
    """Arguments of SEResNet, SEResNeXt or SENet that a backbone's tensors (with the names of this package) have.

    Args:
        tensors: of a residual network; those of its first stage must be there.

    Returns:
        ``type``, ``depth`` (None if there is no such network), ``blocks`` of each stage, ``in_channels``,
        ``stem_channels``, ``base_channels``, ``expansion`` (None for that of the blocks), ``deep_stem``, ``avg_down``,
        ``groups`` and ``base_width`` of a SEResNeXt, ``with_se`` of each stage or of each of its blocks, and, of
        networks with SE, ``se_ratio``, ``se_cfg``; ``deploy``; ``stage_channels`` and ``mid_channels``, None if they
        are those of the architecture; ``norm``, the type of the norms, None if unknown; ``stage_with_dcn``.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = {**_blocks(shapes), **_stem(shapes), **_se(shapes), 'deploy': 'layer1.0.conv1.bias' in shapes}
    return {**found, **_pruned(shapes, found), **_norm(shapes), **_deformable(shapes, len(found['blocks']))}


def _blocks(shapes: dict[str, tuple]) -> dict:
    blocks = defaultdict(set)
    for name in shapes:
        if found := re.match(r'layer(\d+)\.(\d+)\.conv1\.', name):
            blocks[int(found[1])].add(int(found[2]))
    counts = tuple(len(blocks[stage]) for stage in sorted(blocks))

    bottleneck = 'layer1.0.conv3.weight' in shapes
    width, per_group = shapes['layer1.0.conv2.weight'][:2]
    narrow = shapes['layer1.0.conv1.weight'][0]
    groups = narrow // per_group
    halved = groups > 1 and narrow * 2 == width  # the first convolution of SENet-154
    channels = shapes['layer1.0.conv3.weight'][0] if bottleneck else width
    network = SENet if halved else SEResNeXt if groups > 1 else SEResNet
    block = SENet.arch_settings[154][0] if halved else SEResNet.arch_settings[50 if bottleneck else 18][0]

    depths = (d for (kind, units), d in DEPTHS.items() if kind is block and units[: len(counts)] == counts)
    arguments = dict(type=network.__name__, depth=next(depths, None), blocks=counts)
    if groups > 1:
        arguments.update(base_channels=channels // block.expansion, groups=groups, base_width=width // groups)
        expansion = block.expansion
    else:  # wide networks have more channels in their 3x3 convolutions, and less expansion
        arguments.update(base_channels=width)
        expansion = channels // width
    arguments['expansion'] = None if expansion == block.expansion else expansion
    downsample = [name for name in shapes if re.fullmatch(r'layer\d+\.0\.downsample\.[01]\.weight', name)]
    convs = [name for name in downsample if len(shapes[name]) == 4]
    if convs:
        arguments['avg_down'] = convs[0].endswith('downsample.1.weight')
    return arguments


def _pruned(shapes: dict[str, tuple], arguments: dict) -> dict:
    """Numbers of channels if they are not those of the architecture, and the defaults of what they replace."""
    network, bottleneck = NETWORKS[arguments['type']], 'layer1.0.conv3.weight' in shapes
    block = next(block for block, _ in network.arch_settings.values() if (block.expansion > 1) == bottleneck)
    convs = range(1, 4 if bottleneck else 3)
    stages = [
        [[shapes.get(f'layer{i}.{j}.conv{k}.weight', (None,))[0] for k in convs] for j in range(units)]
        for i, units in enumerate(arguments['blocks'], 1)
    ]
    groups, regular = arguments.get('groups', 1), dict(stage_channels=None, mid_channels=None)
    usual = []
    for i, stage in enumerate(stages):
        planes = arguments['base_channels'] * 2**i
        width = planes if groups == 1 else arguments['base_width'] * 2**i * groups
        usual.append([[*block.usual_widths(width), planes * (arguments['expansion'] or block.expansion)]] * len(stage))
    incomplete = any(None in unit for stage in stages for unit in stage)
    if incomplete or stages == usual:
        return regular
    defaults = defaults_of(network)
    replaced = {key: defaults[key] for key in ('base_channels', 'base_width', 'expansion') if key in defaults}
    stem = defaults['stem_channels'] or defaults['base_channels']
    channels = [arguments.get('stem_channels', stem), *(stage[-1][-1] for stage in stages)]
    mid = [[unit[:-1] if bottleneck else unit[0] for unit in stage] for stage in stages]
    return dict(replaced, stem_channels=stem, stage_channels=channels, mid_channels=mid)


def _stem(shapes: dict[str, tuple]) -> dict:
    deep_stem = 'stem.0.weight' in shapes
    first, last = ('stem.0.weight', 'stem.6.weight') if deep_stem else ('conv1.weight', 'conv1.weight')
    if first not in shapes or last not in shapes:
        return dict(deep_stem=deep_stem)
    return dict(deep_stem=deep_stem, in_channels=shapes[first][1], stem_channels=shapes[last][0])


def _norm(shapes: dict[str, tuple]) -> dict:
    names = (re.fullmatch(r'layer1\.0\.(\w+)1\.weight', name) for name in shapes)
    kind = next((NORMS[found[1]] for found in names if found and found[1] in NORMS), None)
    if kind == 'BN' and 'layer1.0.bn1.running_mean' not in shapes:  # other projects name all norms so
        kind = None
    return dict(norm=kind)


def _deformable(shapes: dict[str, tuple], stages: int) -> dict:
    offsets = [name for name in shapes if 'conv_offset' in name]
    return dict(
        stage_with_dcn=tuple(any(name.startswith(f'layer{i}.') for name in offsets) for i in range(1, stages + 1))
    )


def _se(shapes: dict[str, tuple]) -> dict:
    units = defaultdict(dict)  # names of their SE layers' weights, by stage and number
    for name in sorted(shapes):
        if found := re.match(r'layer(\d+)\.(\d+)\.(se_layer\.conv\d\.conv\.weight)?', name):
            layers = units[int(found[1])].setdefault(int(found[2]), [])
            layers += [name] if found[3] else []
    widths = {}  # of the layers but the last, by channels
    with_se, bias = [], True
    for _, stage in sorted(units.items()):
        has = tuple(bool(layers) for _, layers in sorted(stage.items()))
        with_se.append(has if len(set(has)) > 1 else has[0])
        if layers := next(filter(None, stage.values()), None):
            widths[shapes[layers[-1]][0]] = [shapes[name][0] for name in layers[:-1]]
            bias = layers[0].replace('weight', 'bias') in shapes
    if not widths:
        return dict(with_se=tuple(with_se))

    most = max(widths)
    variant = next((name for name, factors in VARIANTS.items() if _in_proportion(widths[most], factors)), 'standard')
    squeezed = {channels: inner[0] // VARIANTS[variant][0] for channels, inner in widths.items()}
    ratio = most // squeezed[most]
    fitting = (d for d in DIVISORS if all(w == squeezed_width(c, ratio, d) for c, w in squeezed.items()))
    options = dict(divisor=next(fitting, 1), variant=variant, bias=bias)
    return dict(with_se=tuple(with_se), se_ratio=ratio, se_cfg=chosen_se(options, SHOWN_SE))


def _in_proportion(widths: list[int], factors: tuple[int, ...]) -> bool:
    return len(widths) == len(factors) and len({width / factor for width, factor in zip(widths, factors)}) == 1


def constructor_arguments(arguments: dict) -> dict:
    """The part of what :func:`arguments_of` returns that is not the default, ready for a config."""
    defaults = _defaults_beside(arguments)
    given = {key: arguments[key] for key in defaults if key in arguments and key != 'depth'}
    chosen = {key: value for key, value in given.items() if value != defaults[key]}
    if not any(arguments['with_se']):
        chosen.pop('with_se', None)
    stages = len(arguments['blocks'])
    if stages < defaults['num_stages']:
        chosen |= dict(num_stages=stages, out_indices=(stages - 1,))
        chosen |= {key: defaults[key][:stages] for key in ('strides', 'dilations')}
    return dict(type=f'se_mm.{arguments["type"]}', depth=arguments['depth'], **chosen)


def _defaults_beside(arguments: dict) -> dict:
    """What a network with some arguments has for those that its config leaves out, as :func:`arguments_of` says it."""
    defaults = defaults_of(NETWORKS[arguments['type']])
    return dict(
        defaults,
        stem_channels=defaults['stem_channels'] or arguments['base_channels'],
        with_se=(defaults['with_se'],) * len(arguments['blocks']),
        stage_with_dcn=defaults['stage_with_dcn'][: len(arguments['blocks'])],
        se_cfg=defaults['se_cfg'] or {},
    )


def misfits(model: nn.Module, expected: dict) -> list[str]:
    """What to set in the config of a residual network so that it fits weights.

    Args:
        model: a SEResNet, SEResNeXt or SENet, whose own arguments are read from its tensors. Of other networks
            nothing is known.
        expected: arguments that the weights need, see :func:`arguments_of`; ``style``, ``stem_pool_ceil_mode`` and
            ``se_position`` besides, if known. With ``se_position``, ``se_cfg`` has all options.

    Returns:
        Texts such as ``'depth=101 (is 50)'``, all that it takes; empty if the network fits.
    """
    if not isinstance(model, SEResNet):
        return []
    actual = dict(arguments_of(model.state_dict()), style=model.style, stem_pool_ceil_mode=model.maxpool.ceil_mode)
    actual |= _se_of(model, actual, expected)
    if expected['depth'] not in (None, *model.arch_settings):
        actual['type'] = next(name for name, network in reversed(NETWORKS.items()) if isinstance(model, network))
    changes = []
    stages, has_stages = len(expected['blocks']), len(actual['blocks'])
    if stages < has_stages:
        changes.append(f'num_stages={stages} (is {has_stages})')
    of_stages = {key: min(stages, has_stages) for key in ('blocks', 'with_se', 'stage_with_dcn')}
    expected, actual = ({**a, **{k: a[k][:n] for k, n in of_stages.items()}} for a in (expected, actual))
    if expected['blocks'] != actual['blocks'] or (has_stages == 4 and expected['depth'] != actual['depth']):
        depth = expected['depth']
        none = f'blocks of its stages to {expected["blocks"]}, which no depth here has'
        changes.append(f'depth={depth} (is {model.depth})' if depth else none)
    changes += _other_layers(expected, actual)
    before, after = _defaults_beside(actual), _defaults_beside(expected)
    lost = ', '.join(sorted(set(before) - set(after) - {'depth'}))
    for key, value in expected.items():
        has = actual.get(key, value)
        # What the network will have if its config leaves the argument out.
        left_out = after.get(key) if after.get(key) != before.get(key) else has
        plain = key == 'with_se' and not any(value)  # SE starts afresh beside a plain network's weights
        if key in ('blocks', 'depth', 'norm', 'stage_with_dcn') or has == left_out == value or plain:
            continue
        if key == 'expansion':
            has = model.expansion
        without = f' without {lost}' if key == 'type' and lost else ''
        changes.append(f'{key}={value!r}{without}' + (f' (is {has!r})' if has != value else ''))
    return changes


def _se_of(model: SEResNet, found: dict, expected: dict) -> dict:
    """Arguments of SE that a network's tensors do not show, and that weights say of themselves."""
    has, known = {}, SHOWN_SE | HIDDEN_SE if 'se_position' in expected else SHOWN_SE
    if 'se_ratio' not in found:  # it has no SE
        has = dict(se_ratio=model.se_cfg['ratio'], se_cfg=chosen_se(model.se_cfg, known))
    elif 'se_position' in expected:
        has = dict(se_cfg={**found['se_cfg'], **chosen_se(model.se_cfg, HIDDEN_SE)})
    return dict(has, se_position=model.se_position) if 'se_position' in expected else has


def _other_layers(expected: dict, actual: dict) -> list[str]:
    """What to set so that norms and deformable convolutions fit; offsets that weights lack may start afresh."""
    changes = []
    if None not in (expected['norm'], actual['norm']) and expected['norm'] != actual['norm']:
        changes.append(f'norm_cfg of type {expected["norm"]} (is {actual["norm"]})')
    needed, has = expected['stage_with_dcn'], actual['stage_with_dcn']
    if any(needs and not own for needs, own in zip(needed, has)):
        changes.append(f'dcn, which the weights have in the stages {needed!r}')
    return changes


def misfits_of_stage(head: SEResLayer, tensors: dict[str, Tensor], expected: dict) -> list[str]:
    """:func:`misfits` of a shared head, which has the units of one stage and no others.

    Args:
        head: the shared head.
        tensors: of a residual network, with the names of this package.
        expected: see :func:`misfits`.
    """
    prefix = f'{head.stage_names[0]}.'
    parts = ({n: t for n, t in named.items() if n.startswith(prefix)} for named in (tensors, head.state_dict()))
    given, own = ({name.replace(prefix, 'layer1.', 1): tensor for name, tensor in part.items()} for part in parts)
    try:
        needed, has = (_of_first_stage(part, head.stage) for part in (given, own))
    except (IndexError, KeyError):  # parts of the stage are missing
        return []
    has |= dict(_se_of(head, has, expected), style=head.style)
    needed |= {key: expected[key] for key in ('style', 'se_position') if key in expected}
    if 'se_cfg' in needed:
        needed['se_cfg'] = {**needed['se_cfg'], **chosen_se(expected['se_cfg'], HIDDEN_SE)}
    changes = []
    if expected['depth'] not in (None, head.depth):  # also where the units of both are alike
        changes.append(f'depth={expected["depth"]} (is {head.depth})')
    if needed['widths'] != has['widths'] and expected['stage_channels']:
        number = head.stage + 1
        changes.append(f'stage_channels={expected["stage_channels"][: number + 1]}')
        changes.append(f'mid_channels={expected["mid_channels"][:number]}')
    else:
        changes += _different(needed, has, ('base_channels', 'groups', 'base_width'))
        if ('layer1.0.conv3.weight' in given) == ('layer1.0.conv3.weight' in own):  # or else the depth brings it
            changes += _different(needed, has, ('expansion',))
    if not any(expected['with_se']):  # SE starts afresh beside a plain network's weights
        needed['with_se'] = has['with_se']
    changes += _other_layers(needed, has)
    keys = ('avg_down', 'with_se', 'se_ratio', 'se_cfg', 'se_position', 'deploy', 'style')
    return changes + _different(needed, has, keys)


def _of_first_stage(tensors: dict[str, Tensor], stage: int) -> dict:
    """:func:`arguments_of` a stage of which the tensors are named as the first stage's, and ``widths`` of its convs."""
    found = arguments_of(tensors)
    block, _ = SEResNet.arch_settings[50 if 'layer1.0.conv3.weight' in tensors else 18]
    groups = found.get('groups', 1)
    convs = (name for name in sorted(tensors) if re.search(r'\.conv\d\.weight$', name))
    return dict(
        found,
        widths=[tuple(tensors[name].shape[:2]) for name in convs],
        base_channels=found['base_channels'] // 2**stage,
        expansion=found['expansion'] or block.expansion,
        groups=groups,
        base_width=found['base_width'] // 2**stage if groups > 1 else 4,
        with_se=found['with_se'][0],
    )


def _different(needed: dict, has: dict, keys: tuple[str, ...]) -> list[str]:
    return [
        f'{key}={needed[key]!r} (is {has[key]!r})'
        for key in keys
        if key in needed and key in has and needed[key] != has[key]
    ]

"""How projects name the weights of SE networks, and what else their weights expect of a network.

A rule pairs a foreign name with the name in this package. ``{l}`` stands for a block such as ``layer1.0``, ``{s}``,
``{i}`` and ``{n}`` for numbers, which may be shifted, ``{p}`` for the last part of a name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from se_mm.models import SEBNInception

Rules = Iterable[tuple[str, str]]

# Of RGB images.
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
# Caffe's order and scale; its first convolution is turned to RGB here.
CAFFE = dict(mean=[123.0, 117.0, 104.0], std=[1.0, 1.0, 1.0])


class Format(NamedTuple):
    """A project's way to store a network.

    Attributes:
        name: for people.
        anchors: names of which every network of this format has one; what stands before is a prefix.
        marks: patterns of names, all of which it has, that tell it from the others with the same anchor.
        rules: names of parameters; those that no rule fits stay as they are.
        head: foreign name of the classifier.
        normalisation: mean and standard deviation (0 to 255) of the images; None if the files don't say.
        stem_pool_ceil_mode: rounding of the stem's pool, None if the files don't say.
        caffe_style: 'never', 'always', 'SE-ResNet' (bottlenecks without groups), or None if the files don't say.
        se: ``se_position`` and the options of SE that no tensor shows, None if the files don't say.
        torch_names: whether parameters are named as in torch.
        transposes: whether matrices are stored as (inputs, outputs).
        bgr: whether the first convolution takes BGR images.
        refusal: why no network here computes what such weights were trained for, None if one does.
    """

    name: str
    anchors: tuple[str, ...]
    marks: tuple[str, ...]
    rules: Rules
    head: str
    normalisation: dict | None = None
    stem_pool_ceil_mode: bool | None = None
    caffe_style: str | None = None
    se: dict | None = None
    torch_names: bool = True
    transposes: bool = False
    bgr: bool = False
    refusal: str | None = None


def _deep_stem(convs: Iterable[str], norms: Iterable[str]) -> Rules:
    """Rules of three convolutions with batch norm."""
    return [
        (f'{name}.{{p}}', f'stem.{3 * i + k}.{{p}}')
        for k, names in enumerate((convs, norms))
        for i, name in enumerate(names)
    ]


def _caffe_rules() -> Rules:
    parts = {
        '1x1_reduce': ('conv1', 'bn1'),
        '3x3': ('conv2', 'bn2'),
        '1x1_increase': ('conv3', 'bn3'),
        '1x1_proj': ('downsample.0', 'downsample.1'),
    }
    se = {'1x1_down': 'se_layer.conv1.conv', '1x1_up': 'se_layer.conv2.conv'}

    def conv_and_norm(foreign: str, conv: str, norm: str) -> Rules:
        return [(f'{foreign}.{{p}}', f'{conv}.{{p}}'), (f'{foreign}/bn.{{p}}', f'{norm}.{{p}}')]

    rules = []
    for foreign, (conv, norm) in parts.items():
        block = 'layer{s-1}.{i-1}.'
        rules += conv_and_norm(f'conv{{s}}_{{i}}_{foreign}', block + conv, block + norm)
    rules += [(f'conv{{s}}_{{i}}_{foreign}.{{p}}', f'layer{{s-1}}.{{i-1}}.{own}.{{p}}') for foreign, own in se.items()]
    stems = {
        'conv1/7x7_s2': ('conv1', 'bn1'),
        'conv1_1/3x3_s2': ('stem.0', 'stem.1'),
        'conv1_2/3x3': ('stem.3', 'stem.4'),
        'conv1_3/3x3': ('stem.6', 'stem.7'),
    }
    for foreign, (conv, norm) in stems.items():
        rules += conv_and_norm(foreign, conv, norm)
    return rules


def _caffe_inception_rules() -> Rules:
    branches = {
        '1x1': (0, 0),
        '3x3_reduce': (1, 0),
        '3x3': (1, 1),
        'double3x3_reduce': (2, 0),
        'double3x3a': (2, 1),
        'double3x3b': (2, 2),
        'pool_proj': (3, 1),
    }
    names = {'conv1/7x7_s2': 'stem.0', 'conv2/3x3_reduce': 'stem.2', 'conv2/3x3': 'stem.3'}
    rules = []
    for i, stage in enumerate(SEBNInception.stages, 1):
        for j, unit in enumerate(stage):
            first = SEBNInception.units[unit][0] is None  # units with a stride have no 1x1 branch
            for foreign, (branch, position) in branches.items():
                names[f'inception_{unit}/{foreign}'] = f'stage{i}.{j}.branches.{branch - first}.{position}'
            for foreign, own in (('1x1_down', 'conv1'), ('1x1_up', 'conv2')):
                rules.append((f'inception_{unit}_{foreign}.{{p}}', f'stage{i}.{j}.se_layer.{own}.conv.{{p}}'))
    for foreign, own in names.items():
        rules += [(f'{foreign}.{{p}}', f'{own}.conv.{{p}}'), (f'{foreign}/bn.{{p}}', f'{own}.bn.{{p}}')]
    return rules


def _gluon_rules(shift: int) -> Rules:
    """``shift``: number of the layers before the first stage, less one."""
    parts = {
        'body.0': 'conv1',
        'body.1': 'bn1',
        'body.3': 'conv2',
        'body.4': 'bn2',
        'body.6': 'conv3',
        'body.7': 'bn3',
        'se.0': 'se_layer.conv1.conv',
        'se.2': 'se_layer.conv2.conv',
        'downsample.{n}': 'downsample.{n}',
    }
    return [(f'features.{{s}}.{{i}}.{a}.{{p}}', f'layer{{s-{shift}}}.{{i}}.{b}.{{p}}') for a, b in parts.items()]


def _paddle_rules(shortcut: int) -> Rules:
    """``shortcut``: position of the shortcut's convolution, after a pool or not."""
    rules = [
        ('bb_{s}_{i}.scale.squeeze.{p}', 'layer{s+1}.{i}.se_layer.conv1.conv.{p}'),
        ('bb_{s}_{i}.scale.excitation.{p}', 'layer{s+1}.{i}.se_layer.conv2.conv.{p}'),
        ('bb_{s}_{i}.short._conv.{p}', f'layer{{s+1}}.{{i}}.downsample.{shortcut}.{{p}}'),
        ('bb_{s}_{i}.short._batch_norm.{p}', f'layer{{s+1}}.{{i}}.downsample.{shortcut + 1}.{{p}}'),
        ('bb_{s}_{i}.conv{n}._conv.{p}', 'layer{s+1}.{i}.conv{n+1}.{p}'),
        ('bb_{s}_{i}.conv{n}._batch_norm.{p}', 'layer{s+1}.{i}.bn{n+1}.{p}'),
        ('conv._conv.{p}', 'conv1.{p}'),
        ('conv._batch_norm.{p}', 'bn1.{p}'),
    ]
    stem = [f'conv1_{i}' for i in (1, 2, 3)]
    return rules + _deep_stem([f'{name}._conv' for name in stem], [f'{name}._batch_norm' for name in stem])


RESNET = ('layer1.0.conv1.weight',)
PADDLE = ('bb_0_0.conv0._conv.weight',)
SE_LAYER, TIMM_DEEP, BOTTLENECK = r'\.se_layer\.conv1\.conv\.', r'^conv1\.3\.', r'^layer1\.0\.conv3\.'
CONVOLVED_SHORTCUT = 'the first of its basic blocks (depths 18 and 34) has a convolution in the shortcut'
RELU_BEFORE_SE = 'its basic blocks (depths 18 and 34) have one more ReLU, before SE; timm://seresnet* has none'
TIMM_SE = [('{l}.se.fc{i}.{p}', '{l}.se_layer.conv{i}.conv.{p}')]
TIMM_STEM = [('bn1.{p}', 'stem.7.{p}'), ('conv1.{i}.{p}', 'stem.{i}.{p}')]
LEGACY = [('{l}.se_module.fc{i}.{p}', '{l}.se_layer.conv{i}.conv.{p}')]
LEGACY_STEM = [('layer0.conv1.{p}', 'conv1.{p}'), ('layer0.bn1.{p}', 'bn1.{p}')]
LEGACY_DEEP_STEM = _deep_stem([f'layer0.conv{i}' for i in (1, 2, 3)], [f'layer0.bn{i}' for i in (1, 2, 3)])
# mmpretrain's ResNetV1c and ResNetV1d; V1d pools only where there is a stride, timm and networks here in stage 1 too.
MMPRETRAIN_STEM = _deep_stem([f'stem.{i}.conv' for i in (0, 1, 2)], [f'stem.{i}.bn' for i in (0, 1, 2)])
UNPOOLED_SHORTCUT = [('layer1.0.downsample.{n}.{p}', 'layer1.0.downsample.{n+1}.{p}')]
POOLS_AT_STRIDES = (r'^layer1\.0\.downsample\.0\.', r'^layer2\.0\.downsample\.2\.')
GLUON_STEM = [('features.0.{p}', 'conv1.{p}'), ('features.1.{p}', 'bn1.{p}')]
GLUON_DEEP_STEM = [('features.{i}.{p}', 'stem.{i}.{p}')]
STANDARD_SE = dict(se_position='standard')
FOUND_IN_TIMM = dict(normalisation=IMAGENET, stem_pool_ceil_mode=False, caffe_style='never', se=STANDARD_SE)
FROM_CAFFE = dict(stem_pool_ceil_mode=True, caffe_style='SE-ResNet', se=STANDARD_SE)
CADENE = dict(FROM_CAFFE, normalisation=IMAGENET)
FILE_OF_CAFFE = dict(normalisation=CAFFE, torch_names=False, bgr=True)
GLUON = dict(FOUND_IN_TIMM, torch_names=False)
PADDLE_CLAS = dict(GLUON, transposes=True)
GLUON_SENET = dict(GLUON, stem_pool_ceil_mode=True)

# The names of the networks here, where they are of none of the formats.
OWN = Format("the model's own", (), (), (), 'head.fc')
# The first that fits counts.
FORMATS = (
    Format('OpenMMLab', RESNET, POOLS_AT_STRIDES, MMPRETRAIN_STEM + UNPOOLED_SHORTCUT, 'head.fc'),
    Format('OpenMMLab', RESNET, (SE_LAYER,), MMPRETRAIN_STEM, 'head.fc'),
    Format('timm', RESNET, (r'\.se\.fc1\.', TIMM_DEEP), TIMM_SE + TIMM_STEM, 'fc', **FOUND_IN_TIMM),
    Format('timm', RESNET, (r'\.se\.fc1\.',), TIMM_SE, 'fc', **FOUND_IN_TIMM),
    Format('timm legacy or Cadene', RESNET, (r'^layer0\.conv3\.',), LEGACY + LEGACY_DEEP_STEM, 'last_linear', **CADENE),
    Format(
        'timm legacy or Cadene',
        RESNET,
        (r'^layer0\.conv1\.', BOTTLENECK),
        LEGACY + LEGACY_STEM,
        'last_linear',
        **CADENE,
    ),
    Format('timm legacy', RESNET, (r'^layer0\.conv1\.',), (), 'last_linear', refusal=RELU_BEFORE_SE),
    Format('plain ResNet of timm', RESNET, (TIMM_DEEP,), TIMM_STEM, 'fc', **FOUND_IN_TIMM),
    Format('plain ResNet', RESNET, (), MMPRETRAIN_STEM, 'fc'),
    Format('GluonCV', ('features.4.0.body.0.weight',), (), GLUON_STEM + _gluon_rules(3), 'output', **GLUON),
    Format('GluonCV', ('features.10.0.body.0.weight',), (), _gluon_rules(9) + GLUON_DEEP_STEM, 'output', **GLUON_SENET),
    Format('PaddleClas', PADDLE, (r'^conv1_1\.', r'^bb_0_0\.conv2\.'), _paddle_rules(1), 'out', **PADDLE_CLAS),
    Format('PaddleClas', PADDLE, (r'^conv1_1\.',), (), 'out', refusal=CONVOLVED_SHORTCUT),
    Format('PaddleClas', PADDLE, (), _paddle_rules(0), 'out', **PADDLE_CLAS),
    Format('Caffe', ('conv2_1_1x1_reduce.weight',), (), _caffe_rules(), 'classifier', **FILE_OF_CAFFE, **FROM_CAFFE),
    Format('Caffe', ('inception_3a/1x1.weight',), (), _caffe_inception_rules(), 'classifier', **FILE_OF_CAFFE),
)

"""Our networks against the layer tables of the networks that the authors released."""

import copy
import re

import pytest
import torch

from caffe import CaffeNet
from se_mm.models import SEBNInception, SENet, SEResNet, SEResNeXt


def ends(*blocks):
    """Names of the layers after which the stages end."""
    return [f'conv{stage}_{block}/relu' for stage, block in enumerate(blocks, 2)]


def caffe_resnet(depth):
    return lambda: SEResNet(depth, style='caffe', stem_pool_ceil_mode=True, norm_eval=False)


NETWORKS = {
    'SE-ResNet-50': (caffe_resnet(50), ends(3, 4, 6, 3)),
    'SE-ResNet-101': (caffe_resnet(101), ends(3, 4, 23, 3)),
    'SE-ResNet-152': (caffe_resnet(152), ends(3, 8, 36, 3)),
    'SE-ResNeXt-50': (lambda: SEResNeXt(50, stem_pool_ceil_mode=True), ends(3, 4, 6, 3)),
    'SE-ResNeXt-101': (lambda: SEResNeXt(101, stem_pool_ceil_mode=True), ends(3, 4, 23, 3)),
    'SENet-154': (SENet, ends(3, 8, 36, 3)),
    'SE-BN-Inception': (
        lambda: SEBNInception(out_indices=(0, 1, 2)),
        ['inception_3b_scale', 'inception_4d_scale', 'inception_5b_scale'],
    ),
}
RESIDUAL = {
    '1x1_reduce': ('conv1', 'bn1'),
    '3x3': ('conv2', 'bn2'),
    '1x1_increase': ('conv3', 'bn3'),
    '1x1_proj': ('downsample.0', 'downsample.1'),
    '1x1_down': ('se_layer.conv1.conv', None),
    '1x1_up': ('se_layer.conv2.conv', None),
}
INCEPTION = {
    '1x1': (0, 0),
    '3x3_reduce': (1, 0),
    '3x3': (1, 1),
    'double3x3_reduce': (2, 0),
    'double3x3a': (2, 1),
    'double3x3b': (2, 2),
    'pool_proj': (3, 1),
}
STEMS = {
    'SENet-154': {
        'conv1_1/3x3_s2': ('stem.0', 'stem.1'),
        'conv1_2/3x3': ('stem.3', 'stem.4'),
        'conv1_3/3x3': ('stem.6', 'stem.7'),
    },
    'SE-BN-Inception': {
        'conv1/7x7_s2': ('stem.0.conv', 'stem.0.bn'),
        'conv2/3x3_reduce': ('stem.2.conv', 'stem.2.bn'),
        'conv2/3x3': ('stem.3.conv', 'stem.3.bn'),
    },
}


def our_names(network, layer):
    """Names of our convolution and batch norm for a convolution of the table."""
    stem = STEMS.get(network, {'conv1/7x7_s2': ('conv1', 'bn1')})
    if layer in stem:
        return stem[layer]
    if match := re.fullmatch(r'conv(\d)_(\d+)_(\w+)', layer):
        stage, block, part = match.groups()
        return [name and f'layer{int(stage) - 1}.{int(block) - 1}.{name}' for name in RESIDUAL[part]]
    unit, part = re.fullmatch(r'inception_(..)[/_](.*)', layer).groups()
    stage, block = next((i, names.index(unit)) for i, names in enumerate(SEBNInception.stages, 1) if unit in names)
    prefix = f'stage{stage}.{block}.'
    if part in ('1x1_down', '1x1_up'):
        return prefix + RESIDUAL[part][0], None
    branch, position = INCEPTION[part]
    branch -= SEBNInception.units[unit][0] is None
    return tuple(f'{prefix}branches.{branch}.{position}.{name}' for name in ('conv', 'bn'))


def state_dict_of(network, net):
    """Weights of the table's network with our names."""
    state = {}
    for name, values in net.weights.items():
        conv = name.removesuffix('/scale').removesuffix('/bn')
        if conv == 'classifier':
            continue
        conv_name, norm_name = our_names(network, conv)
        if name == conv:
            keys = f'{conv_name}.weight', f'{conv_name}.bias'
        elif name.endswith('/scale'):
            keys = f'{norm_name}.weight', f'{norm_name}.bias'
        else:
            keys = f'{norm_name}.running_mean', f'{norm_name}.running_var'
        state.update({key: value for key, value in zip(keys, values) if value is not False})
    return state


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.slow
def test_equal_to_the_released_network(name):
    """All stages of an image of odd size, and of one of 224 all stages and the classifier."""
    make, stage_ends = NETWORKS[name]
    reference, ours = CaffeNet(name), make().double()
    odd = (96, 128) if name == 'SE-BN-Inception' else (97, 129)  # which cannot be run by Caffe at odd sizes
    for size in ((224, 224), odd):
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
        expected = reference.run(image, end=None if size == (224, 224) else stage_ends[-1])
        if size == (224, 224):
            missing, unexpected = ours.load_state_dict(state_dict_of(name, reference), strict=False)
            assert not unexpected and all(key.endswith('num_batches_tracked') for key in missing)
        with torch.no_grad():
            exact, rounded = ours.eval()(image), copy.deepcopy(ours).float()(image.float())
        for a, b, end in zip(exact, rounded, stage_ends, strict=True):
            scale = expected[end].abs().max().item()
            torch.testing.assert_close(a, expected[end], rtol=1e-9, atol=1e-9 * scale)
            torch.testing.assert_close(b.double(), expected[end], rtol=0, atol=1e-4 * scale)
        if size == (224, 224):
            logits = torch.nn.functional.linear(exact[-1].mean((2, 3)), *reference.weights['classifier'])
            torch.testing.assert_close(logits, expected['classifier'])

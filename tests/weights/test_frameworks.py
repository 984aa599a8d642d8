"""Weights of Caffe, MXNet and PaddlePaddle give here the features they give there."""

import pickle

import numpy as np
import pytest
import timm
import torch

from caffe import CaffeNet
from features import assert_same_features, image, loaded, randomise
from foreign_files import to_gluon, write_caffemodel, write_mxnet
from se_mm.models import SEBNInception, SENet, SEResNet, SEResNeXt
from se_mm.weights import load_backbone, read_checkpoint, recognise

CAFFE = {
    'SE-ResNet-50': lambda: SEResNet(50, style='caffe', stem_pool_ceil_mode=True, norm_eval=False),
    'SE-ResNeXt-50': lambda: SEResNeXt(50, stem_pool_ceil_mode=True, norm_eval=False),
    'SENet-154': lambda: SENet(norm_eval=False),
    'SE-BN-Inception': lambda: SEBNInception(out_indices=(0, 1, 2)),
}
ENDS = {
    'SE-ResNet-50': [f'conv{i}_{n}/relu' for i, n in enumerate((3, 4, 6, 3), 2)],
    'SE-ResNeXt-50': [f'conv{i}_{n}/relu' for i, n in enumerate((3, 4, 6, 3), 2)],
    'SENet-154': [f'conv{i}_{n}/relu' for i, n in enumerate((3, 8, 36, 3), 2)],
    'SE-BN-Inception': ['inception_3b_scale', 'inception_4d_scale', 'inception_5b_scale'],
}


@pytest.mark.parametrize('name', CAFFE)
@pytest.mark.slow
def test_caffe_models(name, tmp_path):
    """Ours takes RGB, Caffe's BGR."""
    reference = CaffeNet(name)
    size = (65, 97) if name != 'SE-BN-Inception' else (64, 96)  # which Caffe cannot run at odd sizes
    x = image(*size).double()
    reference.run(x, ENDS[name][-1])  # makes the weights
    for blobs in reference.weights.values():
        blobs[:] = [blob if blob is False else blob.float().double() for blob in blobs]
    expected = reference.run(x.flip(1), ENDS[name][-1])
    path = write_caffemodel(reference, tmp_path / 'weights.caffemodel')
    model = CAFFE[name]()
    report = load_backbone(model, str(path))
    assert report.format.name == 'Caffe' and all(key.endswith('num_batches_tracked') for key in report.fresh)
    assert report.left_over == []
    with torch.no_grad():
        actual = model.double().eval()(x)
    for a, end in zip(actual, ENDS[name], strict=True):
        scale = expected[end].abs().max().item()
        torch.testing.assert_close(a, expected[end], rtol=0, atol=1e-5 * scale)  # statistics were divided in float32


@pytest.mark.parametrize(
    'name, first, arguments',
    [
        ('seresnext50_32x4d', 4, dict(type='se_mm.SEResNeXt', depth=50)),
        ('legacy_senet154', 10, dict(type='se_mm.SENet')),
    ],
)
@pytest.mark.slow
def test_gluoncv(name, first, arguments, tmp_path):
    theirs = randomise(timm.create_model(name))
    state = theirs.state_dict()
    if first == 10:  # its stem and SE under the names that the function above knows
        state = {k.replace('se_module', 'se').replace('last_linear', 'fc'): v for k, v in state.items()}
        stem = {
            f'layer0.{kind}{i}': f'conv1.{3 * i - 3 + k}' for i in (1, 2, 3) for k, kind in enumerate(('conv', 'bn'))
        }
        state = {next((k.replace(a, b) for a, b in stem.items() if k.startswith(a)), k): v for k, v in state.items()}
    path = write_mxnet(to_gluon(state, first), tmp_path / 'weights.params')
    assert_same_features(theirs, loaded(path, **arguments))


@pytest.mark.parametrize('deep', [False, True])
@pytest.mark.slow
def test_paddleclas(deep, tmp_path):
    theirs = randomise(
        timm.create_model('seresnet50' if not deep else 'seresnet152d', block_args=dict(attn_layer='se'))
    )
    arrays = {}
    for key, tensor in theirs.state_dict().items():
        *layer, parameter = key.split('.')
        if parameter == 'num_batches_tracked':
            continue
        values = tensor.numpy()
        norm = 'bn' in layer[-1] or (layer[-2:-1] == ['downsample'] and tensor.dim() == 1) or tensor.dim() == 1
        parameter = dict(running_mean='_mean', running_var='_variance').get(parameter, parameter)
        kind = '_batch_norm' if norm else '_conv'
        if layer[0].startswith('layer'):
            block = f'bb_{int(layer[0][5:]) - 1}_{layer[1]}'
            if layer[2] == 'se':
                name = f'{block}.scale.{dict(fc1="squeeze", fc2="excitation")[layer[3]]}'
                values = values[:, :, 0, 0].T.copy() if tensor.dim() == 4 else values
            elif layer[2] == 'downsample':
                name = f'{block}.short.{kind}'
            else:
                name = f'{block}.conv{int(layer[2][-1]) - 1}.{kind}'
        elif layer[0] == 'fc':
            name, values = 'out', values.T.copy() if tensor.dim() == 2 else values
        elif deep:
            position = int(layer[1]) if layer[0] == 'conv1' else 7
            name = f'conv1_{position // 3 + 1}.{kind}'
        else:
            name = f'conv.{kind}'
        arrays[f'{name}.{parameter}'] = values
    arrays['StructuredToParameterName@@'] = {key: key for key in arrays}
    path = tmp_path / 'weights.pdparams'
    path.write_bytes(pickle.dumps(arrays, protocol=2))
    arguments = dict(type='se_mm.SEResNet', depth=152, deep_stem=True, avg_down=True) if deep else dict(depth=50)
    model = loaded(path, **dict(dict(type='se_mm.SEResNet'), **arguments))
    assert_same_features(theirs, model)
    head = recognise(read_checkpoint(path)['state_dict'], 'a').head
    np.testing.assert_array_equal(head['weight'].float(), theirs.fc.weight.detach().float())

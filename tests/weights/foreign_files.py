"""Weight files as Caffe and MXNet write them, without Caffe and MXNet."""

import struct

import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def caffe_message():
    """NetParameter of caffe.proto, with the fields that weights need."""
    file = descriptor_pb2.FileDescriptorProto(name='caffe.proto', package='caffe', syntax='proto2')

    def message(name, *fields):
        entry = file.message_type.add(name=name)
        for field, number, label, kind in fields:
            made = entry.field.add(name=field, number=number, label=3 if label == 'repeated' else 1)
            if kind[0].isupper():
                made.type, made.type_name = 11, f'.caffe.{kind}'
            else:
                made.type = dict(float=2, string=9, int64=3)[kind]
                made.options.packed = label == 'repeated' and kind != 'string'

    message('BlobShape', ('dim', 1, 'repeated', 'int64'))
    message('BlobProto', ('data', 5, 'repeated', 'float'), ('shape', 7, 'optional', 'BlobShape'))
    message(
        'LayerParameter',
        ('name', 1, 'optional', 'string'),
        ('type', 2, 'optional', 'string'),
        ('bottom', 3, 'repeated', 'string'),
        ('blobs', 7, 'repeated', 'BlobProto'),
    )
    message('NetParameter', ('name', 1, 'optional', 'string'), ('layer', 100, 'repeated', 'LayerParameter'))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('caffe.NetParameter'))


def write_caffemodel(net, path, factor=999.98):
    """What Caffe would write; its batch norms keep sums, and the factor to divide them by."""
    file = caffe_message()(name='SENet')
    for layer in net.layers:
        blobs = [blob for blob in net.weights.get(layer['name'], ()) if blob is not False]
        entry = file.layer.add(name=layer['name'], type=layer['type'], bottom=layer['bottoms'].split())
        if layer['type'] == 'BatchNorm':
            blobs = [blob * factor for blob in blobs] + [torch.tensor([factor])]
        for values in blobs:
            blob = entry.blobs.add()
            blob.shape.dim.extend(values.shape)
            blob.data.extend(values.float().flatten().tolist())
    path.write_bytes(file.SerializeToString())
    return path


def write_mxnet(arrays, path):
    """The list that mxnet.nd.save writes (NDArray version 2)."""
    parts = [struct.pack('<QQQ', 0x112, 0, len(arrays))]
    for array in arrays.values():
        values = array.numpy().astype('<f4')
        parts.append(struct.pack('<IiI', 0xF993FAC9, 0, values.ndim))
        parts.append(struct.pack(f'<{values.ndim}q', *values.shape) + struct.pack('<iii', 1, 0, 0) + values.tobytes())
    parts.append(struct.pack('<Q', len(arrays)))
    parts += [struct.pack('<Q', len(name)) + name.encode() for name in arrays]
    path.write_bytes(b''.join(parts))
    return path


def to_gluon(state, first):
    """Names of GluonCV for a network of timm; ``first``: position of the first stage in its list of layers."""
    parts = dict(conv1='body.0', bn1='body.1', conv2='body.3', bn2='body.4', conv3='body.6', bn3='body.7')
    names = {}
    for key, tensor in state.items():
        *layer, parameter = key.split('.')
        parameter = dict(running_mean='running_mean', running_var='running_var').get(
            parameter,
            parameter if tensor.dim() > 1 or 'fc' in key else dict(weight='gamma', bias='beta').get(parameter),
        )
        if parameter is None:
            continue
        if layer[0].startswith('layer'):
            stage, block = first + int(layer[0][5:]) - 1, layer[1]
            if layer[2] == 'se':
                part = f'se.{0 if layer[3] == "fc1" else 2}'
            else:
                part = '.'.join(layer[2:]) if layer[2] == 'downsample' else parts[layer[2]]
            names[f'features.{stage}.{block}.{part}.{parameter}'] = tensor
        elif layer[0] == 'fc':
            names[f'output.{parameter}'] = tensor
        elif first == 4:
            names[f'features.{dict(conv1=0, bn1=1)[layer[0]]}.{parameter}'] = tensor
        else:
            names[f'features.{layer[1] if layer[0] == "conv1" else 7}.{parameter}'] = tensor
    return names

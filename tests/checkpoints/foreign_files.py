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

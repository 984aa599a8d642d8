"""One parser for each kind of file that holds weights; the kind is told from a file's first bytes.

A parser runs nothing that stands in a file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .pickles import PickledArray, PlainUnpickler, load_torch


def parse_safetensors(path: Path) -> dict:
    """``state_dict`` and ``meta``, whose values are JSON where this package wrote them."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, 'pt') as file:
        meta = file.metadata() or {}
    for key, value in meta.items():
        with contextlib.suppress(ValueError):
            meta[key] = json.loads(value)
    return dict(state_dict=load_file(path), meta=meta)


def parse_paddle(path: Path) -> dict[str, Tensor]:
    """A PaddlePaddle .pdparams file: a pickled dict of arrays."""
    with path.open('rb') as file:
        content = PlainUnpickler(file).load()
    return {name: torch.from_numpy(value.array) for name, value in content.items() if isinstance(value, PickledArray)}


TORCH_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[:14]  # the number that torch.save wrote before zip files
MXNET_MAGIC = 0x112
MXNET_DTYPES = ('<f4', '<f8', '<f2', 'u1', '<i4', 'i1', '<i8')


def parse_mxnet(path: Path) -> dict[str, Tensor]:
    """An MXNet .params file: a list of arrays, then a list of their names."""
    data, at = np.memmap(path, np.uint8, 'r'), 16

    def take(layout: str) -> tuple:
        nonlocal at
        values = struct.unpack_from(f'<{layout}', data, at)
        at += struct.calcsize(f'<{layout}')
        return values

    arrays, names = [], []
    for _ in range(take('Q')[0]):
        magic = take('I')[0]
        if magic not in (0xF993FAC8, 0xF993FAC9, 0xF993FACA):
            raise ValueError(f'unknown kind of array {magic:#x}')
        if magic != 0xF993FAC8 and take('i')[0] != 0:
            raise ValueError('sparse arrays')
        shape = take(f'{take("I")[0]}q')
        *_, kind = take('3i')  # device and its number, dtype
        dtype = np.dtype(MXNET_DTYPES[kind])
        count = int(np.prod(shape, dtype=object))
        arrays.append(torch.from_numpy(np.frombuffer(data, dtype, count, at).reshape(shape).copy()))
        at += count * dtype.itemsize
    for _ in range(take('Q')[0]):
        names.append(take(f'{take("Q")[0]}s')[0].decode().removeprefix('arg:').removeprefix('aux:'))
    return dict(zip(names, arrays, strict=True))


@functools.cache
def _caffe_blob() -> type:
    """The message BlobProto of caffe.proto, without its data."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name='se_mm/caffe.proto', package='se_mm.caffe', syntax='proto2')
    shape, blob = file.message_type.add(name='BlobShape'), file.message_type.add(name='BlobProto')
    Field = descriptor_pb2.FieldDescriptorProto
    shape.field.add(name='dim', number=1, type=Field.TYPE_INT64, label=Field.LABEL_REPEATED).options.packed = True
    blob.field.add(name='shape', number=7, type=Field.TYPE_MESSAGE, type_name='BlobShape', label=Field.LABEL_OPTIONAL)
    for number, name in enumerate(OLD_SHAPE, 1):
        blob.field.add(name=name, number=number, type=Field.TYPE_INT32, label=Field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('se_mm.caffe.BlobProto'))


OLD_SHAPE = ('num', 'channels', 'height', 'width')


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, all bytes and content of a message's fields: views, so that the library need not copy the weights."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:  # protobuf's numbers have 64 bits
                raise ValueError('a number of more than 64 bits')

    while at < len(data):
        start, tag = at, varint()
        kind = tag & 7
        if kind not in (0, 1, 2, 5):
            raise ValueError(f'unknown wire type {kind}')
        size = varint() if kind in (0, 2) else {1: 8, 5: 4}[kind]
        content, at = at, at + (0 if kind == 0 else size)
        if at > len(data):
            raise ValueError('truncated')
        yield tag >> 3, data[start:at], data[content:at]


def parse_caffe(path: Path) -> dict[str, Tensor]:
    """A .caffemodel: the blobs of every layer, as ``layer.0``, ``layer.1`` and so on."""
    tensors = {}
    for number, _, layer in _fields(memoryview(np.memmap(path, np.uint8, 'r'))):
        if number != 100:
            continue
        fields = [(number, content) for number, _, content in _fields(layer)]
        name = next(bytes(content).decode() for number, content in fields if number == 1)
        for i, blob in enumerate(content for number, content in fields if number == 7):
            parts = list(_fields(blob))
            header = _caffe_blob().FromString(b''.join(whole for number, whole, _ in parts if number != 5))
            shape = header.shape.dim or [getattr(header, key) for key in OLD_SHAPE if header.HasField(key)]
            values = np.concatenate([np.frombuffer(content, '<f4') for number, _, content in parts if number == 5])
            tensors[f'{name}.{i}'] = torch.from_numpy(values.reshape(tuple(shape)))
    return tensors


def parser_of(path: Path) -> Callable[[Path], object] | None:
    """The parser for a file, None if the file is of no known kind."""
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(16)
    if len(head) < 16:
        return None
    length, magic = struct.unpack('<QQ', head)
    if head[8:9] == b'{' and length <= size - 8:
        return parse_safetensors
    if head[:4] == b'PK\x03\x04' or head[:14] == TORCH_LEGACY:
        return load_torch
    if head[:1] == b'\x80':
        return parse_paddle
    if length == MXNET_MAGIC and magic == 0:
        return parse_mxnet
    if head[:1] == b'\n' or head[:2] == b'\xa2\x06':  # the first field of a message: name or layer
        return parse_caffe
    return None

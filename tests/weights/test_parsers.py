"""Files of other frameworks that are damaged or hostile give one clear error, and nothing in them is run."""

import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from caffe import CaffeNet
from foreign_files import write_caffemodel, write_mxnet
from se_mm.utils import InputError
from se_mm.weights import read_checkpoint

WEIGHTS = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.ones(2)}


def small_net():
    """Two layers with weights."""
    net = CaffeNet('SE-ResNet-50')
    net.layers = net.layers[:4]
    net.run(torch.ones(1, 3, 16, 16, dtype=torch.float64))
    return net


def write_zip(path):
    torch.save(WEIGHTS, path)


def write_legacy(path):
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)


def write_safetensors(path):
    save_file(WEIGHTS, path)


def write_paddle(path):
    path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in WEIGHTS.items()}, protocol=2))


def write_arrays(path):
    write_mxnet(WEIGHTS, path)


def write_caffe(path):
    write_caffemodel(small_net(), path)


WRITERS = [write_zip, write_legacy, write_safetensors, write_paddle, write_arrays, write_caffe]


@pytest.mark.parametrize('write', WRITERS)
def test_kind_is_told_from_the_content(write, tmp_path):
    path = tmp_path / 'weights'
    write(path)
    state = read_checkpoint(path)['state_dict']
    if write is write_caffe:
        ((name, blobs), *_) = small_net().weights.items()
        torch.testing.assert_close(state[f'{name}.0'], blobs[0].float())
    else:
        assert {name: tensor.tolist() for name, tensor in state.items()} == {
            name: tensor.tolist() for name, tensor in WEIGHTS.items()
        }


@pytest.mark.parametrize('write', WRITERS)
def test_truncated_anywhere(write, tmp_path):
    path = tmp_path / 'weights'
    write(path)
    content = path.read_bytes()
    for length in sorted({0, 1, 7, 8, 15, 16, 40, len(content) // 2, len(content) - 1}):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r'checkpoint \S*weights (is|holds)') as caught:
            read_checkpoint(path)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('write', WRITERS)
def test_any_changed_byte_gives_weights_or_a_clear_error(write, tmp_path):
    path = tmp_path / 'weights'
    write(path)
    content, errors = path.read_bytes(), 0
    generator = np.random.default_rng(0)
    for position in generator.integers(0, min(len(content), 4000), 150):
        changed = bytearray(content)
        changed[position] ^= 1 << generator.integers(0, 8)
        path.write_bytes(changed)
        try:
            read_checkpoint(path)
        except InputError:
            errors += 1
    assert errors > 0


def big_endian_arrays(path):
    path.write_bytes(struct.pack('>QQQ', 0x112, 0, 0) + bytes(64))


def big_endian_header(path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack('>Q', len(header)) + header + bytes(4))


def gigantic_header(path):
    path.write_bytes(struct.pack('<Q', 2**60) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(4))


def gigantic_tensor(path):
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(4))


def gigantic_count_of_arrays(path):
    path.write_bytes(struct.pack('<QQQ', 0x112, 0, 2**62) + bytes(64))


def gigantic_array(path):
    head = struct.pack('<QQQ', 0x112, 0, 1)
    path.write_bytes(head + struct.pack('<IiI2q3i', 0xF993FAC9, 0, 2, 2**40, 2**20, 1, 0, 0) + bytes(64))


def gigantic_dimensions(path):
    path.write_bytes(struct.pack('<QQQ', 0x112, 0, 1) + struct.pack('<IiI', 0xF993FAC9, 0, 2**32 - 1) + bytes(64))


def gigantic_layer(path):
    path.write_bytes(b'\n\x01a' + b'\xa2\x06' + b'\xff' * 8 + b'\x01' + bytes(64))


def endless_number(path):
    path.write_bytes(b'\n\x01a' + b'\xa2\x06' + b'\xff' * (1 << 20) + b'\x01' + bytes(64))


def gigantic_string_in_a_pickle(path):
    path.write_bytes(b'\x80\x04\x8e' + struct.pack('<Q', 2**50) + bytes(64))


def archive_of_other_files(path):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('readme.txt', 'not weights')


def picture(path):
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(64))


def page(path):
    path.write_text('<!DOCTYPE html><html><body>404 Not Found</body></html>')


def one_layer_without_weights(path):
    path.write_bytes(b'\n\x03net' + b'\xa2\x06\x05\n\x03one' + b'\xa2\x06\x05\n\x03two')


@pytest.mark.parametrize(
    'write',
    [
        big_endian_arrays,
        big_endian_header,
        gigantic_header,
        gigantic_tensor,
        gigantic_count_of_arrays,
        gigantic_array,
        gigantic_dimensions,
        gigantic_layer,
        endless_number,
        gigantic_string_in_a_pickle,
        archive_of_other_files,
        picture,
        page,
        one_layer_without_weights,
    ],
)
def test_what_is_no_checkpoint(write, tmp_path):
    path = tmp_path / 'weights.pth'
    write(path)
    began = time.monotonic()
    with pytest.raises(InputError, match=r'weights\.pth (is damaged or no checkpoint|holds no weights)') as caught:
        read_checkpoint(path)
    assert time.monotonic() - began < 5
    assert '\n' not in str(caught.value)


class Executes:
    """Would create a file when unpickled; harmless otherwise."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_code_in_pickled_arrays_is_refused_and_not_run(tmp_path):
    path = tmp_path / 'weights.pdparams'
    path.write_bytes(pickle.dumps(dict(a=np.ones(2), b=Executes(tmp_path / 'was_run'))))
    with pytest.raises(InputError, match=r'weights\.pdparams is refused: .*holds _?io\.open, which could run code'):
        read_checkpoint(path)
    assert not (tmp_path / 'was_run').exists()


def test_trusted_files_may_be_run(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=WEIGHTS, log=Executes(tmp_path / 'was_run')), path)
    assert set(read_checkpoint(path, unsafe_pickle=True)['state_dict']) == set(WEIGHTS)
    assert (tmp_path / 'was_run').exists()

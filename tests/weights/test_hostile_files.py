"""Crafted files: what is refused, and which torch cannot refuse all of them."""

import copy
import io
import os
import pickle
import re
import resource
import runpy
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from numpy._core.multiarray import _reconstruct
from safetensors.torch import save_file
from torch import nn

from se_mm.engine.weight_checks import check_pretrained
from se_mm.utils import InputError
from se_mm.weights import pickles, read_checkpoint

WEIGHTS = {'a.weight': torch.arange(6.0).reshape(2, 3)}


class Objects:
    """The dtype of addresses of objects."""

    def __reduce__(self):
        return np.dtype, ('O', False, True)


class Fields:
    """A dtype of 8 bytes that are said to hold the address of an object."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        sizes = (8, 1) if self.name == 'V8' else (-1, -1)
        state = (3, '|' if self.name == 'V8' else '<', None, ('a',), {'a': (Objects(), 0)}, *sizes, 0)
        return np.dtype, (self.name, False, True), state


class Addresses:
    """An array of that dtype, whose bytes are no address."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __reduce__(self):
        return _reconstruct, (np.ndarray, (0,), b'b'), (1, (1,), Fields(self.dtype), False, b'A' * 8)


def then_set_a(content):
    """A pickle that also sets item 'a' of what it holds: NumPy would release the object at the old address."""
    return content[:-1] + pickle.BINUNICODE + b'\x01\0\0\0a' + pickle.NONE + pickle.SETITEM + pickle.STOP


def write_paddle(path, dtype):
    path.write_bytes(then_set_a(pickle.dumps(Addresses(dtype), 2)))


def write_torch(path, dtype):
    buffer = io.BytesIO()
    torch.save(Addresses(dtype), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, 'w') as new:
        for item in old.infolist():
            content = old.read(item)
            new.writestr(item.filename, then_set_a(content) if item.filename.endswith('data.pkl') else content)


@pytest.mark.parametrize('dtype', ['V8', 'f8'])
@pytest.mark.parametrize('write', [write_paddle, write_torch])
def test_no_bytes_become_objects(write, dtype, tmp_path):
    write(tmp_path / 'weights', dtype)
    script = 'import sys; from se_mm.weights import read_checkpoint; read_checkpoint(sys.argv[1])'
    done = subprocess.run([sys.executable, '-c', script, tmp_path / 'weights'], capture_output=True, text=True)
    assert done.returncode == 1 and 'InputError: checkpoint' in done.stderr, done  # not a crash


def test_arrays_beside_the_weights_hold_numbers(tmp_path):
    torch.save(dict(state_dict=WEIGHTS, meta=Addresses('f8')), tmp_path / 'a.pth')
    with pytest.raises(InputError, match=r"a\.pth is refused: it holds dtype 'O', which could run code"):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('dtype', ['<f4', '>f4', '<f2', '<i8', '|b1'])
@pytest.mark.parametrize('order', 'CF')
def test_pickled_arrays_keep_their_values(dtype, order, tmp_path):
    array = np.asarray(np.random.default_rng(0).integers(0, 9, (2, 3, 4)), dtype, order)
    path = tmp_path / 'a.pdparams'
    path.write_bytes(pickle.dumps(dict(a=array, b=array[1], c=array[0, 0, 0, None].reshape(())), protocol=2))
    state = read_checkpoint(path)['state_dict']
    np.testing.assert_array_equal(state['a'], array)
    np.testing.assert_array_equal(state['b'], array[1])
    assert state['c'].shape == () and state['c'].item() == array[0, 0, 0]
    assert state['a'].numpy().dtype == np.dtype(dtype).newbyteorder('=')


def test_programs_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / 'a.pth')
    words = (
        r'a\.pth is refused: it holds a TorchScript program, which could run code. Ask its author for the state_dict.$'
    )
    for trusted in (False, True):
        with pytest.raises(InputError, match=words):
            read_checkpoint(tmp_path / 'a.pth', unsafe_pickle=trusted)


class Calls:
    """Would call a function when unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


PAYLOADS = {
    'posix.system': Calls(os.system, 'touch was_run'),
    'eval': Calls(eval, 'open("was_run", "w")'),
    'shutil.copyfile': Calls(shutil.copyfile, 'a.pth', 'was_run'),
    'runpy._run_code': Calls(runpy._run_code, 'open("was_run", "w")', {}),
    'sys.exit': Calls(sys.exit, 0),
}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('function', PAYLOADS)
def test_code_is_named_and_no_message_says_how_to_run_it(function, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=WEIGHTS, meta=PAYLOADS[function]), 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=rf'a\.pth is refused: it holds (builtins\.)?{function}, which could run code'
    ) as caught:
        read_checkpoint('a.pth')
    assert 'weights_only' not in str(caught.value) and not os.path.exists('was_run')


@pytest.mark.parametrize('zipped', [True, False])
def test_broken_pickles_are_no_reason_to_run_code(zipped, tmp_path):
    """torch gives its advice for whatever its unpickler cannot read."""
    torch.save(dict(state_dict=WEIGHTS), tmp_path / 'whole', _use_new_zipfile_serialization=zipped)
    messages = set()
    for old, new in ((b'}', b']'), (b'\x85', b'0'), (b'Q', b'0'), (b'R', b'b'), (b's.', b'a.'), (b'u.', b'b.')):
        content = (tmp_path / 'whole').read_bytes()
        if zipped:
            buffer = io.BytesIO()
            with zipfile.ZipFile(tmp_path / 'whole') as source, zipfile.ZipFile(buffer, 'w') as target:
                for item in source.infolist():
                    record = source.read(item)
                    target.writestr(item, record.replace(old, new) if item.filename.endswith('pkl') else record)
            content = buffer.getvalue()
        else:
            content = content[:200] + content[200:].replace(old, new)
        (tmp_path / 'a.pth').write_bytes(content)
        try:
            read_checkpoint(tmp_path / 'a.pth')
        except InputError as error:
            messages.add(str(error))
    assert len(messages) > 2
    assert not any(re.search('weights_only|allowlist|PyTorch 2.6', message) for message in messages), messages


ARRAYS = {
    'objects': Calls(np.ndarray, (1 << 27,), 'O'),
    'bytes': Calls(np.ndarray, (1 << 40,), 'b'),
    'empty': Calls(_reconstruct, np.ndarray, (1 << 27,), b'O'),
    'other': Calls(_reconstruct, np.ndarray, (1 << 27,), b'd'),
}


@pytest.mark.parametrize('kind', ARRAYS)
def test_small_files_do_not_fill_the_memory(kind, tmp_path):
    """NumPy would allocate and fill a GB."""
    torch.save(dict(state_dict=WEIGHTS, meta=ARRAYS[kind]), tmp_path / 'a.pth')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r'a\.pth is refused: it holds array without numbers'):
        read_checkpoint(tmp_path / 'a.pth')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_arrays_that_were_read_are_written_as_numpys(protocol, tmp_path):
    """MMEngine saves the log that it resumed from; NumPy alone reads the log."""
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(state_dict=WEIGHTS, log=buffer, plain=np.arange(6.0).reshape(2, 3).T), tmp_path / 'a.pth')
    content = read_checkpoint(tmp_path / 'a.pth')
    content['log'].update(3.0)
    again = pickle.loads(pickle.dumps(copy.deepcopy(content), protocol))
    assert again['log'].data[0].tolist() == [1, 2, 3] and again['log'].mean() == 2
    assert type(again['plain']) is type(again['log'].data[1]) is np.ndarray
    np.testing.assert_array_equal(again['plain'], np.arange(6.0).reshape(2, 3).T)
    torch.save(content, tmp_path / 'b.pth')
    np.testing.assert_array_equal(read_checkpoint(tmp_path / 'b.pth')['plain'], again['plain'])


@pytest.fixture
def warnings(monkeypatch):
    """What is logged, as if the process had not warned yet."""
    said = []
    monkeypatch.setattr(pickles, '_warned', False)
    monkeypatch.setattr(pickles, 'print_log', lambda message, **_: said.append(message))
    return said


@pytest.mark.parametrize(
    'version, attacks',
    [
        ('2.5.1', 'CVE-2025-32434 and CVE-2026-24747'),
        ('2.6.0', 'CVE-2026-24747'),
        ('2.9.1+cu130', 'CVE-2026-24747'),
        ('2.10.0', None),
        ('2.14.1+cpu', None),
    ],
)
def test_torch_that_can_be_attacked_is_named_once(version, attacks, warnings, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, '__version__', version)
    save_file(WEIGHTS, tmp_path / 'a.safetensors')
    (tmp_path / 'a.pdparams').write_bytes(pickle.dumps({name: w.numpy() for name, w in WEIGHTS.items()}, protocol=2))
    for name in ('a.safetensors', 'a.pdparams'):  # which torch does not unpickle
        read_checkpoint(tmp_path / name)
    assert not warnings
    torch.save(WEIGHTS, tmp_path / 'a.pth')
    torch.save(WEIGHTS, tmp_path / 'b.pth', _use_new_zipfile_serialization=False)
    for name in ('b.pth', 'a.pth', 'a.pth'):
        read_checkpoint(tmp_path / name)
    if attacks is None:
        assert not warnings
    else:
        (warning,) = warnings
        assert f'b.pth is a pickle, and torch {version} has {attacks}: reading' in warning
        assert 'Install torch 2.10 or newer, use a .safetensors file' in warning


@pytest.mark.parametrize('name, expected', [('torchvision://resnet50', 1), ('https://a.b/c.safetensors', 0)])
def test_files_that_mmengine_will_read_are_warned_of(name, expected, warnings, monkeypatch):
    """Modules of other packages take their weights from MMEngine, which downloads them after the checks."""
    monkeypatch.setattr(torch, '__version__', '2.9.1')
    cfg = Config(dict(model=dict(type='Other', init_cfg=dict(type='Pretrained', checkpoint=name))))
    check_pretrained(cfg, nn.Linear(2, 2))
    assert len(warnings) == expected

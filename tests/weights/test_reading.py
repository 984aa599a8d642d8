import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from packaging.version import Version
from torch import nn

from se_mm.utils import InputError
from se_mm.weights import load_model, read_checkpoint


class Executes:
    """Would create a file when unpickled; harmless otherwise."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


class Reaches:
    """Would get at an attribute that is not one of HistoryBuffer's statistics."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_reads_what_mmengine_saves(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    log = dict(loss=buffer, seed=np.random.get_state()[1], step=np.float64(3))
    torch.save(dict(state_dict=nn.Linear(2, 2).state_dict(), message_hub=log), tmp_path / 'a.pth')
    checkpoint = read_checkpoint(tmp_path / 'a.pth')
    assert checkpoint['message_hub']['loss'].mean() == 1.5
    assert set(checkpoint['state_dict']) == {'weight', 'bias'}


def rename_numpy(source, target):
    """The same checkpoint as the other major version of NumPy would have written it."""
    ours, theirs = (b'numpy._core', b'numpy.core') if np.__version__ >= '2' else (b'numpy.core', b'numpy._core')
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith('data.pkl'):
                assert ours in content
                content = content.replace(ours, theirs)
            new.writestr(item.filename, content)


@pytest.mark.skipif(Version(torch.__version__) < Version('2.6'), reason='torch 2.5 has no aliases of safe globals')
@pytest.mark.slow
def test_other_numpys_checkpoints_are_read_by_us_and_by_mmengine(tmp_path):
    log = dict(loss=HistoryBuffer([1.0, 2.0], [1, 1]), step=np.float64(3))
    torch.save(dict(state_dict=nn.Linear(2, 2).state_dict(), message_hub=log), tmp_path / 'a.pth')
    rename_numpy(tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert read_checkpoint(tmp_path / 'b.pth')['message_hub']['step'] == 3
    script = (
        'import sys; from se_mm.engine import guard; from mmengine.runner.checkpoint import _load_checkpoint\n'
        'with guard(): print(_load_checkpoint(sys.argv[1])["message_hub"]["loss"].mean())'
    )
    assert subprocess.check_output([sys.executable, '-c', script, tmp_path / 'b.pth'], text=True).endswith('1.5\n')


@pytest.mark.slow
def test_tools_keep_mmengine_from_unpickling_code(tmp_path):
    torch.save(dict(state_dict={}, meta=Executes(tmp_path / 'was_run')), tmp_path / 'a.pth')
    script = (
        'import sys; from se_mm.engine import guard; from mmengine.runner.checkpoint import _load_checkpoint\n'
        'with guard(): _load_checkpoint(sys.argv[1])'
    )
    done = subprocess.run([sys.executable, '-c', script, tmp_path / 'a.pth'], capture_output=True, text=True)
    assert done.returncode == 1 and 'Unsupported global' in done.stderr
    assert not (tmp_path / 'was_run').exists()


def test_reading_a_checkpoint_leaves_mmengine_able_to(tmp_path):
    torch.save(dict(state_dict=nn.Linear(2, 2).state_dict(), meta=np.float32(3)), tmp_path / 'a.pth')
    script = (
        'import sys; from se_mm.engine import guard; from se_mm.weights import read_checkpoint\n'
        'from mmengine.runner.checkpoint import _load_checkpoint\n'
        'with guard(): [read(sys.argv[1]) for read in (read_checkpoint, _load_checkpoint, _load_checkpoint)]'
    )
    subprocess.run([sys.executable, '-c', script, tmp_path / 'a.pth'], check=True)


def test_modules_may_convert_their_old_weights(tmp_path):
    class Renamed(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            if f'{prefix}old' in state_dict:
                state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}old')
            super()._load_from_state_dict(state_dict, prefix, *args)

    load_model(Renamed(2, 2), dict(old=torch.ones(2, 2), bias=torch.ones(2)), 'a.pth')


def test_bare_state_dict_is_a_checkpoint(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'a.pth')
    assert set(read_checkpoint(tmp_path / 'a.pth')['state_dict']) == {'weight', 'bias'}


@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    content = dict(state_dict=nn.Linear(2, 2).state_dict(), meta=Executes(tmp_path / 'was_run'))
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r'a\.pth is refused: it holds [\w.]+, which could run code\. Save'):
        read_checkpoint(tmp_path / 'a.pth')
    assert not (tmp_path / 'was_run').exists()
    torch.load(tmp_path / 'a.pth', weights_only=False)
    assert (tmp_path / 'was_run').exists()  # it would have


def test_attributes_are_no_way_around(tmp_path):
    torch.save(dict(state_dict=nn.Linear(2, 2).state_dict(), meta=Reaches()), tmp_path / 'a.pth')
    with pytest.raises(InputError, match='refused: it holds attribute .*, which could'):
        read_checkpoint(tmp_path / 'a.pth')


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def text(path):
    path.write_text('not a checkpoint')


def empty(path):
    path.write_bytes(b'')


def no_weights(path):
    torch.save(dict(epoch=3), path)


def other_pickle(path):
    path.write_bytes(pickle.dumps([1, 2]))


@pytest.mark.parametrize('damage', [cut, text, empty, no_weights, other_pickle])
def test_damaged_files_are_named(tmp_path, damage):
    torch.save(nn.Linear(64, 64).state_dict(), tmp_path / 'a.pth')
    damage(tmp_path / 'a.pth')
    with pytest.raises(InputError, match=r'a\.pth'):
        read_checkpoint(tmp_path / 'a.pth')


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r'nowhere\.pth does not exist'):
        read_checkpoint(tmp_path / 'nowhere.pth')


def test_fit():
    model, weights = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.Linear(2, 3).state_dict()
    part = {f'0.{k}': v for k, v in weights.items()}
    load_model(model, {f'module.{k}': v for k, v in model.state_dict().items()}, 'a.pth')
    load_model(model, part, 'a.pth', strict=False)
    with pytest.raises(InputError, match=r'a\.pth .* of 4 tensors 2 missing \(e\.g\. 1\.weight\)\. Use'):
        load_model(model, part, 'a.pth')
    with pytest.raises(InputError, match='another architecture'):
        load_model(model, weights, 'a.pth', strict=False)
    with pytest.raises(InputError, match=r'1 of another shape \(e\.g\. size mismatch for 0\.bias.*\[5\].*\[3\]'):
        load_model(model, {**model.state_dict(), '0.bias': torch.zeros(5)}, 'a.pth')

"""Zip files of torch that another program packed, or that a disk or a copy damaged."""

import zipfile

import numpy as np
import pytest
import torch

from se_mm.utils import InputError
from se_mm.weights import archives, read_checkpoint

WEIGHTS = {f'{i}.weight': torch.rand(64, 65, generator=torch.Generator().manual_seed(i)) for i in range(4)}


@pytest.fixture
def path(tmp_path):
    torch.save(dict(state_dict=WEIGHTS, meta=dict(epoch=1)), tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


def packed_again(path, compression, shift=0):
    """The same records in an archive that a program for zip files wrote."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again := path.with_name('b.pth'), 'w', compression) as new:
        for i, item in enumerate(old.infolist()):
            new.writestr(item.filename, old.read(item))
            new.fp.write(bytes(shift * (i % 3)))
            new.start_dir = new.fp.tell()
    return again


def assert_equal(path):
    state = read_checkpoint(path)['state_dict']
    assert set(state) == set(WEIGHTS) and all(torch.equal(state[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize('shift', [0, 1, 3])
@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_packed_again(path, compression, shift):
    assert_equal(packed_again(path, compression, shift))


@pytest.mark.parametrize('compression', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_give_a_clear_error(path, compression):
    with pytest.raises(InputError, match=r'b\.pth is damaged'):
        read_checkpoint(packed_again(path, compression))


def test_only_files_of_torch_are_mapped(path):
    assert archives.check_archive(path)[1]
    assert not archives.check_archive(packed_again(path, zipfile.ZIP_DEFLATED))[1]


def test_every_flipped_bit_in_the_weights_is_found(path):
    content, generator = path.read_bytes(), np.random.default_rng(0)
    places = [content.find(weight.numpy().tobytes()) for weight in WEIGHTS.values()]
    assert -1 not in places
    for place in generator.choice(places, 40):
        changed = bytearray(content)
        changed[place + generator.integers(0, 64 * 65 * 4)] ^= 1 << generator.integers(0, 8)
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r'a\.pth is damaged .*copy or download it again \(Bad CRC-32 .*data/\d'):
            read_checkpoint(path)


def test_zeroed_pages_are_found(path):
    content = path.read_bytes()
    for start in range(0, len(content) - 4096, 4096):
        changed = bytearray(content)
        changed[start : start + 4096] = bytes(4096)
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r'a\.pth is damaged') as caught:
            read_checkpoint(path)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kept', [True, False])
def test_files_without_checksums(tmp_path, kept):
    """torch writes no checksums on request."""
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this torch always writes checksums')
    try:
        torch.serialization.set_crc32_options(kept)
        torch.save(WEIGHTS, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal(tmp_path / 'a.pth')


def test_bombs_are_not_unpacked(path, monkeypatch):
    monkeypatch.setattr(archives, 'ALWAYS_ALLOWED', 0)
    torch.save(dict(state_dict=dict(a=torch.zeros(1 << 20))), path)
    bomb = packed_again(path, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(InputError, match=r'b\.pth is damaged .*\(its records would unpack to 41\d{5} bytes\)'):
        read_checkpoint(bomb)

"""The addresses that names of checkpoints stand for, and files from storage that MMEngine reads."""

import subprocess
import sys
import time

import pytest
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.backends import backends, prefix_to_backends

from se_mm.models import SEResNet
from se_mm.utils import InputError
from se_mm.weights import fetch, load_backbone, released
from se_mm.weights.download import address_of

NAMES = [entry['checkpoint'] for entry in released() if '://' in entry['checkpoint']]


@pytest.mark.parametrize('name', NAMES)
def test_released_names_have_an_address(name):
    address = address_of(name)
    assert address.startswith(('https://', 'http://', 'hf-hub://timm/')) and 'None' not in address
    if 'legacy_' in name:
        assert address.endswith('.pth')


@pytest.mark.parametrize('name, digest', [('model-20240131.pth', False), ('model-20249931.pth', True)])
def test_a_date_in_a_name_is_no_digest(name, digest, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    asked = []

    def download(url, path, hash_prefix):
        asked.append(hash_prefix)
        torch.save({'a': torch.ones(1)}, path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    path = fetch(f'https://127.0.0.1/{name}')
    assert path.name == name and (asked[0] is not None) == digest


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Addresses ``bucket://FILE`` of a file client that is registered with MMEngine."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    folder = tmp_path / 'bucket'
    folder.mkdir()

    class Bucket(LocalBackend):
        def copyfile_to_local(self, src, dst):
            return super().copyfile_to_local(str(src).replace('bucket://', f'{folder}/'), dst)

    register_backend('bucket', Bucket, prefixes='bucket')
    yield folder
    del backends['bucket'], prefix_to_backends['bucket']


def test_file_clients_of_mmengine(bucket):
    torch.save(SEResNet(18).state_dict(), bucket / 'weights.pth')
    assert load_backbone(SEResNet(18), 'bucket://weights.pth').fresh == []
    with pytest.raises(InputError, match=r'bucket://missing.pth cannot be copied \(.*\): give the path'):
        fetch('bucket://missing.pth')
    assert not list((bucket.parent / 'hub').rglob('*.partial'))


def test_rewritten_checkpoints_are_copied_again(bucket, monkeypatch):
    """But once for processes that started before the copy was made."""

    def fetched():
        return torch.load(fetch('bucket://weights.pth'))['a'].item()

    for value, expected in ((1, 1), (2, 1)):
        torch.save(dict(a=torch.tensor(value)), bucket / 'weights.pth')
        assert fetched() == expected
    monkeypatch.setattr('se_mm.weights.download.STARTED', time.time() + 1)
    assert fetched() == 2


@pytest.mark.slow
def test_unsafe_pickle_works_inside_the_tools(tmp_path):
    """Tools make torch refuse code, which the one file that the user trusts is exempt from."""
    script = (
        'import sys, torch; from se_mm.engine import guard; from se_mm.models import SEResNet\n'
        'from se_mm.weights import load_backbone, read_checkpoint\n'
        'class Trusted: pass\n'
        'torch.save(dict(state_dict=SEResNet(18).state_dict(), meta=Trusted()), sys.argv[1])\n'
        'with guard():\n'
        '    init_cfg = dict(type="Pretrained", checkpoint=sys.argv[1], unsafe_pickle=True)\n'
        '    SEResNet(18, init_cfg=init_cfg).init_weights()\n'
        '    load_backbone(SEResNet(18), sys.argv[1], unsafe_pickle=True)\n'
        '    print("trusted")\n'
        '    read_checkpoint(sys.argv[1])'
    )
    done = subprocess.run([sys.executable, '-c', script, tmp_path / 'a.pth'], capture_output=True, text=True)
    assert 'trusted' in done.stdout, done.stderr
    assert done.returncode == 1 and 'a.pth is refused' in done.stderr  # other reads still refuse


def test_own_names():
    with pytest.raises(InputError, match='checkpoint se_mm://none: the names of this package are'):
        fetch('se_mm://none')

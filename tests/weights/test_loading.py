"""Where checkpoints come from, and what loading them takes."""

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch

from foreign_files import to_gluon, write_mxnet
from se_mm.conversion import save_weights
from se_mm.models import SEResNet
from se_mm.utils import InputError
from se_mm.weights import fetch, load_backbone, read_checkpoint

DEAD = 'http://127.0.0.1:1'


def python(script, *arguments, **env):
    """Standard output and error of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, '-c', script, *map(str, arguments)],
        env={**os.environ, **{name: str(value) for name, value in env.items()}},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


LOAD = (
    'import sys; from se_mm.engine import guard; from se_mm.weights import load_backbone\n'
    'from se_mm.models import SEResNet\n'
    'with guard(): print(load_backbone(SEResNet(50), sys.argv[1]))'
)


@pytest.mark.parametrize(
    'checkpoint, words',
    [
        ('timm://seresnet50.ra2_in1k', ['huggingface.co/timm/seresnet50.ra2_in1k/resolve/main/model.safetensors']),
        ('mmcls://se-resnet50', ['download https://', 'se-resnet50_batch256_imagenet_20200804']),
        (f'{DEAD}/weights.pth', [f'download {DEAD}/weights.pth elsewhere']),
    ],
)
@pytest.mark.slow
def test_offline(checkpoint, words, tmp_path):
    """No network and an empty cache: one line that says how to do it by hand."""
    env = dict(HF_HOME=tmp_path, TORCH_HOME=tmp_path, HF_HUB_OFFLINE=1)
    code, _, error = python(LOAD, checkpoint, **env, http_proxy=DEAD, https_proxy=DEAD, no_proxy='')
    (line,) = [line for line in error.splitlines() if line.startswith('error: ')]
    assert code == 1 and 'Traceback' not in error
    for word in [f'checkpoint {checkpoint} is not in the cache and cannot be downloaded', 'give its path', *words]:
        assert word in line


@pytest.mark.parametrize(
    'checkpoint, message',
    [
        (
            'timm://seresnet50.nobodys',
            r"timm has no weights named 'seresnet50\.nobodys'; similar: .*seresnet50\.a1_in1k",
        ),
        ('timm://seresnextaa101d_32x8d.ah_in1k', 'this network smooths its maps before strides'),
        ('timm://nothing', "timm has no weights named 'nothing'; similar: none"),
        ('mmcls://se-resnet5', r'MMEngine knows no such name; of its \d+ names similar are se-resnet50'),
        ('mmcls://nothing', 'similar are '),
        ('s4://bucket/file', 'unknown scheme, known are .*s3://, se_mm://, timm://, torchvision://.*; or give a file'),
    ],
)
def test_unknown_names(checkpoint, message):
    with pytest.raises(InputError, match=message):
        fetch(checkpoint)


@pytest.fixture
def server(tmp_path):
    """Serves the folder ``served``; a list of the paths that were asked for."""
    folder, asked = tmp_path / 'served', []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def do_HEAD(self):
            asked.append(self.path)
            super().do_HEAD()

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{running.server_port}', asked
    running.shutdown()
    running.server_close()


def test_from_the_cache_of_timm(server, tmp_path):
    """Nothing is asked of the network."""
    weights = timm.create_model('seresnet50')
    folder = tmp_path / 'hub' / 'models--timm--seresnet50.ra2_in1k'
    save_weights(weights.state_dict(), folder / 'snapshots' / 'abc' / 'model.safetensors')
    (folder / 'refs').mkdir()
    (folder / 'refs' / 'main').write_text('abc')
    _, address, asked = server
    code, output, error = python(LOAD, 'timm://seresnet50.ra2_in1k', HF_HOME=tmp_path, HF_ENDPOINT=address)
    assert code == 0, error
    assert 'timm://seresnet50.ra2_in1k (format: timm): 382 tensors loaded' in output and not asked


@pytest.mark.slow
def test_processes_of_a_machine_download_once(server, tmp_path):
    folder, address, asked = server
    save_weights(SEResNet(50).state_dict(), folder / 'weights.pth')
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(python, LOAD, f'{address}/weights.pth', TORCH_HOME=tmp_path) for _ in range(2)]
        results = [run.result() for run in runs]
    assert [code for code, *_ in results] == [0, 0], results
    assert asked == ['/weights.pth']


def test_downloads_are_compared_with_the_hash_in_their_name(server, tmp_path, monkeypatch):
    folder, address, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    path = save_weights({'a': torch.ones(1)}, folder / 'weights-00000000.pth')
    with pytest.raises(InputError, match='invalid hash value'):
        fetch(f'{address}/weights-00000000.pth')
    assert not (tmp_path / 'checkpoints' / path.name).exists()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path.rename(folder / f'weights-{digest}.pth')
    assert fetch(f'{address}/weights-{digest}.pth').is_file()


def test_files_of_the_same_name_are_told_apart(server, tmp_path, monkeypatch):
    folder, address, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    for i in range(2):
        (folder / str(i)).mkdir()
        save_weights({'a': torch.full((1,), float(i))}, folder / str(i) / 'best.pth')
    values = [read_checkpoint(fetch(f'{address}/{i}/best.pth'))['state_dict']['a'].item() for i in (0, 1, 0)]
    assert values == [0, 1, 0]


def test_init_cfg_with_keys_that_mean_nothing():
    for cfg, message in ((dict(checkpoint='a', strickt=False), 'unknown strickt'), (dict(), 'no checkpoint')):
        with pytest.raises(InputError, match=f'init_cfg: {message}; it takes checkpoint, prefix, strict, fresh_se'):
            SEResNet(18, init_cfg=dict(type='Pretrained', **cfg)).init_weights()


MEASURE = """
import gc, os, sys, threading, time
import safetensors.torch
import torch
from se_mm.weights import load_backbone
from se_mm.models import SEResNet, SEResNeXt

def held():  # bytes of this process that are no mapped files
    (line,) = (line for line in open('/proc/self/status') if line.startswith('RssAnon'))
    return 1024 * int(line.split()[1])

def watch():
    global peak
    while True:
        peak = max(peak, held())
        time.sleep(0.001)

model = SEResNet(50) if sys.argv[2] == 'SEResNet' else SEResNeXt(50)
gc.collect()
before = peak = held()
threading.Thread(target=watch, daemon=True).start()
load_backbone(model, sys.argv[1])
print((peak - before) / os.path.getsize(sys.argv[1]))
"""


@pytest.mark.parametrize('suffix, most', [('pth', 0.1), ('safetensors', 0.1), ('params', 1.05)])
@pytest.mark.slow
def test_memory(suffix, most, tmp_path):
    """Mapped files cost nothing, which all processes of a machine share; others at most their size."""
    path, model = tmp_path / f'weights.{suffix}', SEResNet(50)
    if suffix == 'params':
        model = timm.create_model('seresnext50_32x4d')
        write_mxnet(to_gluon(model.state_dict(), 4), path)
    else:
        save_weights(model.state_dict(), path)
    code, output, error = python(
        MEASURE, path, 'SEResNeXt' if suffix == 'params' else 'SEResNet', MALLOC_TRIM_THRESHOLD_=0
    )
    assert code == 0, error
    assert float(output) <= most


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path):
    """A mapped file may be overwritten afterwards."""
    path = save_weights(SEResNet(18).state_dict(), tmp_path / 'weights.pth')
    model = SEResNet(18)
    load_backbone(model, str(path))
    before = [tensor.clone() for tensor in model.state_dict().values()]
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(SEResNet(18).state_dict(), tmp_path / 'a.pth')
    SEResNet(18, init_cfg=dict(type='Pretrained', checkpoint='~/a.pth')).init_weights()
    assert 'conv1.weight' in read_checkpoint('~/a.pth')['state_dict']


def test_sha256_in_init_cfg(tmp_path):
    model = SEResNet(18)
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    digest = hashlib.sha256((tmp_path / 'a.pth').read_bytes()).hexdigest()
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    for digits in (digest, digest[:8], digest[:20].upper()):
        SEResNet(18, init_cfg=dict(cfg, sha256=digits)).init_weights()
    (tmp_path / 'a.pth').write_bytes((tmp_path / 'a.pth').read_bytes() + b'\0')
    for digits in (digest, digest[:8]):
        with pytest.raises(InputError, match=rf'a\.pth is refused: the SHA-256 of .* is \w{{64}}, and .*={digits}\.'):
            SEResNet(18, init_cfg=dict(cfg, sha256=digits)).init_weights()
    for digits in (digest[:7], digest + '0', 'x' * 64, 12345678):
        with pytest.raises(InputError, match=r'init_cfg\.sha256=.*: give the text of 8 to 64 hexadecimal digits'):
            load_backbone(model, tmp_path / 'a.pth', sha256=digits)

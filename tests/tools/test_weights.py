"""Converting and releasing weights, and checkpoints that would run code, as a user meets them."""

import json
import os
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import mmcv.ops  # noqa: F401  registers DCNv2
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from conftest import CONFIGS, TOOLS
from se_mm.conversion import save_weights
from se_mm.models import SEResNet
from se_mm.utils import sha256
from se_mm.weights import read_checkpoint

DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'


def tool(name, *arguments):
    return [sys.executable, TOOLS / f'{name}.py', *arguments]


def build(config):
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def data(root, **more):
    values = {'data_root': root, 'train_cfg.max_epochs': 1, 'default_hooks.logger.interval': 1} | more
    return ['--cfg-options', *(f'{key}={value}' for key, value in values.items())]


def test_convert_there_and_back(run, tmp_path):
    theirs = timm.create_model('seresnext50_32x4d').state_dict()
    save_weights(theirs, tmp_path / 'timm.safetensors')
    code, output = run(*tool('convert_checkpoint', 'timm.safetensors', 'a/ours.pth', '--json', 'report.json'))
    assert code == 0, output
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['format'] == 'timm' and report['backbone'] == dict(type='se_mm.SEResNeXt', depth=50)
    assert report['data_preprocessor'] == dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    )
    assert report['fresh'] == report['left_over'] == [] and report['written'] == 'a/ours.pth'
    assert "type='se_mm.SEResNeXt', depth=50" in output and 'mean=[123.675, 116.28, 103.53]' in output
    classifier = build(CONFIGS / 'imagenet' / 'se_x50_32x4d_imagenet.py')
    classifier.load_state_dict(read_checkpoint(tmp_path / 'a' / 'ours.pth')['state_dict'])
    code, output = run(*tool('convert_checkpoint', 'a/ours.pth', 'back.safetensors', '--to', 'timm', '--hash'))
    assert code == 0, output
    (back,) = tmp_path.glob('back-*.safetensors')
    assert back.stem == f'back-{sha256(back)[:8]}'
    state = read_checkpoint(back)['state_dict']
    assert set(state) == set(theirs) and all(torch.equal(state[name], tensor) for name, tensor in theirs.items())


def test_converted_plain_weights_say_that_se_is_fresh(run, tmp_path):
    save_weights(timm.create_model('resnet50d').state_dict(), tmp_path / 'plain.pth')
    code, output = run(*tool('convert_checkpoint', 'plain.pth', 'ours.pth'), COLUMNS=200)
    assert code == 0, output
    text = ' '.join(output.split())
    assert 'deep_stem=True, avg_down=True' in text and 'SE would start afresh' in text


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['missing.pth', 'b.pth'], 'checkpoint missing.pth does not exist'),
        (['a.pth', 'a.pth'], 'a.pth is the file to convert: give another name'),
        (['a.pth', 'b.pth'], 'a.pth: the names of its tensors are of no known format; known are OpenMMLab'),
        (['timm://seresnet50.nobodys', 'b.pth'], 'timm has no weights named'),
    ],
)
def test_conversion_errors(run, tmp_path, arguments, message):
    save_weights({'net.0.weight': torch.ones(1)}, tmp_path / 'a.pth')
    code, output = run(*tool('convert_checkpoint', *arguments))
    assert code == 1 and message in output and 'Traceback' not in output
    assert not (tmp_path / 'b.pth').exists()


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(norm_cfg=dict(type='GN', num_groups=8)), 'networks with norms of type GN are not converted'),
        (dict(dcn=dict(type='DCNv2'), stage_with_dcn=(True,) * 4), 'networks with deformable convolutions are not'),
    ],
    ids=str,
)
def test_networks_that_are_not_converted(run, tmp_path, arguments, words):
    torch.save(SEResNet(50, base_channels=16, **arguments).state_dict(), tmp_path / 'a.pth')
    code, output = run(*tool('convert_checkpoint', 'a.pth', 'b.pth'))
    assert code == 1 and words in output and 'Traceback' not in output
    code, output = run(*tool('publish_model', 'a.pth', 'b.safetensors'))
    assert code == 0, output


def test_networks_of_three_stages_are_converted(run, tmp_path):
    arguments = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
    torch.save(SEResNet(50, base_channels=16, **arguments).state_dict(), tmp_path / 'a.pth')
    code, output = run(*tool('convert_checkpoint', 'a.pth', 'b.pth', '--json', 'a.json'))
    assert code == 0 and 'SE last' in output, output
    backbone = json.loads((tmp_path / 'a.json').read_text())['backbone']
    expected = dict(arguments, type='se_mm.SEResNet', depth=50, base_channels=16)
    assert backbone == json.loads(json.dumps(expected))
    code, output = run(*tool('convert_checkpoint', 'a.pth', 'c.pth', '--to', 'timm'))
    assert code == 1 and 'timm has no network with blocks=(3, 4, 6)' in output


def test_released_weights_are_listed(run):
    code, output = run(*tool('convert_checkpoint', '--list'))
    assert code == 0
    for word in ('timm://seresnet50.ra2_in1k', 'mmcls://se-resnet101', 'SENet.caffemodel', 'avg_down=True', '15.64'):
        assert word in output


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_released_file_is_evaluated(run, scenes, tmp_path, suffix):
    """It holds nothing but weights and how they came about; it cannot be resumed."""
    content = dict(
        state_dict=build(CLASSIFIER).state_dict(),
        optimizer=dict(state={}),
        meta=dict(epoch=3, cfg='model = dict()', hostname='mine'),
        message_hub={},
    )
    torch.save(content, tmp_path / 'epoch_3.pth')
    code, output = run(*tool('publish_model', 'epoch_3.pth', f'released{suffix}'))
    assert code == 0, output
    (released,) = tmp_path.glob(f'released-*{suffix}')
    assert released.stem == f'released-{sha256(released)[:8]}' and released.name in output
    checkpoint = read_checkpoint(released)
    assert 'optimizer' not in checkpoint and 'hostname' not in checkpoint.get('meta', {})
    code, output = run(*tool('test', CLASSIFIER, released), *data(scenes))
    assert code == 0, output
    code, output = run(*tool('train', CLASSIFIER, '--resume', released), *data(scenes))
    assert code == 1 and f'{released} cannot be resumed, it has no' in output


def test_releasing_keeps_the_checkpoint(run, tmp_path):
    torch.save(dict(state_dict={'a': torch.ones(1)}, optimizer={}), tmp_path / 'a.pth')
    before = (tmp_path / 'a.pth').read_bytes()
    code, output = run(*tool('publish_model', 'a.pth', 'a.pth'))
    assert code == 0, output
    assert (tmp_path / 'a.pth').read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2 and len(list(tmp_path.glob('a-*.pth'))) == 1


def test_weights_of_other_projects_are_to_be_converted_first(run, scenes, tmp_path):
    save_weights(timm.create_model('seresnet18').state_dict(), tmp_path / 'a.pth')
    code, output = run(*tool('test', CLASSIFIER, 'a.pth'), *data(scenes))
    assert code == 1 and 'python tools/convert_checkpoint.py a.pth NEW.pth' in output


class Executes:
    """Would create a file when unpickled; harmless otherwise."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.fixture
def hostile(tmp_path):
    path = tmp_path / 'hostile.pth'
    content = dict(state_dict=build(CLASSIFIER).state_dict(), optimizer={}, message_hub={})
    torch.save(dict(content, meta=Executes(tmp_path / 'was_run')), path)
    return path


@pytest.mark.parametrize('way', ['test', 'load_from', 'resume', 'init_cfg', 'convert', 'publish', 'export'])
def test_code_is_refused_and_not_run(run, scenes, hostile, tmp_path, way):
    """Also with the variable set by which people make torch trust all files."""
    pretrained = {'model.backbone.init_cfg.type': 'Pretrained', 'model.backbone.init_cfg.checkpoint': hostile}
    command = dict(
        test=tool('test', CLASSIFIER, hostile, *data(scenes)),
        load_from=tool('train', CLASSIFIER, *data(scenes, load_from=hostile)),
        resume=tool('train', CLASSIFIER, '--resume', hostile, *data(scenes)),
        init_cfg=tool('train', CLASSIFIER, *data(scenes, **pretrained)),
        convert=tool('convert_checkpoint', hostile, 'out.pth'),
        publish=tool('publish_model', hostile, 'out.pth'),
        export=tool('export_onnx', CLASSIFIER, hostile, 'out.onnx'),
    )[way]
    code, output = run(*command, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1)
    assert code == 1 and 'hostile.pth is refused' in output and 'Traceback' not in output, output
    assert not (tmp_path / 'was_run').exists() and not list(tmp_path.glob('out*'))


def test_config_in_a_checkpoint_is_not_run(run, scenes, tmp_path):
    """MMEngine would, when resuming."""
    content = dict(state_dict=build(CLASSIFIER).state_dict(), optimizer={}, message_hub={})
    torch.save(dict(content, meta=dict(epoch=1, iter=1, config='open("was_run", "w")')), tmp_path / 'a.pth')
    code, output = run(*tool('train', CLASSIFIER, '--resume', 'a.pth', *data(scenes)))
    assert code == 1 and 'a.pth is refused: its meta.config would be run as a program' in output
    assert not (tmp_path / 'was_run').exists()


def test_config_in_a_downloaded_checkpoint_is_not_run(run, scenes, tmp_path):
    content = dict(state_dict=build(CLASSIFIER).state_dict(), optimizer={}, message_hub={})
    folder = tmp_path / 'served'
    folder.mkdir()
    torch.save(dict(content, meta=dict(epoch=1, iter=1, config='open("was_run", "w")')), folder / 'a.pth')
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/a.pth'
        code, output = run(*tool('train', CLASSIFIER, '--resume', address, *data(scenes)), TORCH_HOME=tmp_path)
        server.shutdown()
    assert code == 1 and 'is refused: its meta.config would be run as a program' in output, output
    assert not (tmp_path / 'was_run').exists()


STORE = """
from mmengine.fileio import LocalBackend, register_backend

class Store(LocalBackend):
    def copyfile_to_local(self, filepath, dst):
        return super().copyfile_to_local(filepath.replace('s3://bucket', 'stored'), dst)

register_backend('store', Store, prefixes='s3', force=True)
"""


def test_checkpoints_of_mmengines_file_clients(run, scenes, tmp_path):
    """With a client that a config registers."""
    (tmp_path / 'store.py').write_text(STORE)
    (tmp_path / 'mine.py').write_text(f"_base_ = {str(CLASSIFIER)!r}\ncustom_imports = dict(imports=['store'])\n")
    (tmp_path / 'stored').mkdir()
    state = build(CLASSIFIER).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'stored' / 'a.pth')
    torch.save(dict(state_dict={'head.fc.weight': torch.ones(1)}), tmp_path / 'stored' / 'other.pth')
    env = dict(TORCH_HOME=tmp_path / 'cache', PYTHONPATH=f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    options = {'optim_wrapper.optimizer.lr': 0, 'optim_wrapper.optimizer.weight_decay': 0, 'work_dir': 'work'}
    code, output = run(*tool('train', 'mine.py', *data(scenes, load_from='s3://bucket/a.pth', **options)), **env)
    assert code == 0, output
    trained = read_checkpoint(tmp_path / 'work' / 'epoch_1.pth')['state_dict']
    assert torch.equal(trained['head.fc.weight'], state['head.fc.weight'])
    code, output = run(*tool('test', 'mine.py', 's3://bucket/a.pth', *data(scenes)), **env)
    assert code == 0, output
    for name, words in (('other.pth', 'another architecture'), ('no.pth', 'cannot be copied')):
        code, output = run(*tool('test', 'mine.py', f's3://bucket/{name}', *data(scenes)), **env)
        assert code == 1 and words in output.splitlines()[-1] and 'Traceback' not in output, output


def test_trusted_file_is_run_on_request(run, scenes, hostile, tmp_path):
    code, output = run(*tool('test', CLASSIFIER, hostile, '--unsafe-pickle'), *data(scenes))
    assert code == 0 and 'unsafe pickles are allowed' in output, output
    assert (tmp_path / 'was_run').exists()

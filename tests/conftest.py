import os
import signal
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # has to be set before Triton is imported
    os.environ['TRITON_INTERPRET'] = '1'

# A shell that runs the tests in the background ignores Ctrl-C, and so would the programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

CACHE = tempfile.TemporaryDirectory()
os.environ['SE_MM_CACHE'] = CACHE.name  # also of the programs that tests start

import se_mm.mmcv_ext  # noqa: E402, F401  operators, where mmcv has none
import yaml_once  # noqa: E402, F401
from forked import start_server  # noqa: E402
from se_mm.datasets.drawn import write_scenes, write_shapes  # noqa: E402
from se_mm.engine.checks import check_compiler  # noqa: E402
from se_mm.utils import InputError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
TOOLS = ROOT / 'tools'
COMPARED = pytest.StashKey[int]()


def config_files():
    """All configs that can be run, the bases of others left out."""
    return sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('drawn') / 'shapes', train=16, val=8)


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp('drawn') / 'scenes', train=4, val=2)


def build_without_numbers(cfg):
    """A model of tensors with shapes alone, which is quick; with numbers, if its type needs them."""
    from mmengine.registry import MODELS

    try:
        with torch.device('meta'):
            return MODELS.build(deepcopy(cfg))
    except RuntimeError as error:
        assert 'meta tensors' in str(error)
        return MODELS.build(deepcopy(cfg))


@pytest.fixture(scope='session')
def forking():
    """A folder with a program named python that starts at once."""
    return start_server()


@pytest.fixture
def run(tmp_path, forking):
    """Run a program in an empty folder; returns exit code and output.

    Without ``fork``, Python starts anew: for other packages, variables that imports read, or another network.
    """

    def run_program(*command, cwd=tmp_path, timeout=300, fork=True, **env):
        program, *arguments = map(str, command)
        environment = {**os.environ, **{name: str(value) for name, value in env.items()}}
        environment['PATH'] = f'{Path(sys.executable).parent}:{environment["PATH"]}'
        if fork:
            environment['PATH'] = f'{forking}:{environment["PATH"]}'
            if program == sys.executable and arguments[0].endswith('.py'):
                program = str(forking / 'python')
        result = subprocess.run(
            [program, *arguments],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return result.returncode, result.stdout

    return run_program


@pytest.fixture
def start(tmp_path):
    """Start a program and do not wait for it; its standard output can be read."""
    started = []

    def start_program(*command):
        command = [str(part) for part in command]
        started.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start_program
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]


@pytest.fixture
def retinanet_options(shapes):
    """For --cfg-options of mmdet's retinanet_r18_fpn_1x_coco.py: one epoch on drawn data."""
    options = [
        'model.bbox_head.num_classes=3',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=2',
        'default_hooks.logger.interval=4',
    ]
    for loader, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        if loader != 'train':
            options.append(f'{loader}_dataloader.dataset.pipeline.1.scale=(64,64)')
        options += [
            f'{loader}_dataloader.dataset.data_root={shapes}/',
            f'{loader}_dataloader.dataset.ann_file=annotations/{split}.json',
            f'{loader}_dataloader.dataset.data_prefix.img={split}/',
            f'{loader}_dataloader.dataset.metainfo.classes=circle,square,triangle',
            f'{loader}_dataloader.num_workers=0',
            f'{loader}_dataloader.persistent_workers=False',
        ]
    return [*options, *(f'{kind}_evaluator.ann_file={shapes}/annotations/val.json' for kind in ('val', 'test'))]


@pytest.fixture
def needs_compiler():
    """Skip the test where torch.compile does not work on the CPU."""
    try:
        check_compiler("backend='inductor'")
    except InputError as error:
        pytest.skip(str(error))


def compiled_operators():
    """mmcv's own, None if this mmcv has none."""
    from mmcv import _ext

    return None if _ext is se_mm.mmcv_ext else _ext


def pytest_itemcollected(item):
    """Programs take seconds to start."""
    if {'run', 'start'} & set(item.fixturenames):
        item.add_marker('slow')


@pytest.hookimpl(trylast=True)  # of the tests that -k and -m leave
def pytest_collection_modifyitems(config, items):
    """Leave out the tests that compare with mmcv's compiled operators where mmcv has none."""
    if not compiled_operators():
        compared = [item for item in items if 'both' in getattr(item, 'fixturenames', ())]
        items[:] = [item for item in items if 'both' not in getattr(item, 'fixturenames', ())]
        config.hook.pytest_deselected(items=compared)
        config.stash[COMPARED] = len(compared)


def pytest_terminal_summary(terminalreporter, config):
    if number := config.stash.get(COMPARED, 0):
        terminalreporter.write_line(f'{number} tests left out: mmcv has no compiled operators to compare with')


def use_operators(extension, monkeypatch):
    """Let mmcv.ops call an extension."""
    import mmcv.ops  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', extension)


@pytest.fixture
def stand_in(monkeypatch):
    """mmcv.ops with the stand-in, whatever this mmcv has."""
    use_operators(se_mm.mmcv_ext, monkeypatch)


@pytest.fixture
def both(monkeypatch):
    """A function's results with mmcv's compiled operators and with the stand-in."""

    def run(function):
        results = []
        for extension in (compiled_operators(), se_mm.mmcv_ext):
            with monkeypatch.context() as patch:
                use_operators(extension, patch)
                results.append(function())
        return results

    return run

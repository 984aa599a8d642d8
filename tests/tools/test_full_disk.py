"""Programs whose output does not fit on the disk: one line, and what was there stays."""

import sys
from pathlib import Path

import pytest
import torch

import full_disk
from conftest import TOOLS
from se_mm.utils.config import build_model, load_config
from work_dirs import CLASSIFIERS, write_run

SMALL = f"""
_base_ = {str(CLASSIFIERS[1])!r}
model = dict(backbone=dict(stem_channels=8, base_channels=8, se_ratio=4), head=dict(in_channels=64))
"""
TRAINING = ['--work-dir', 'disk/run', '--cfg-options', 'data_root=scenes', 'train_cfg.max_epochs=99']


@pytest.fixture
def run_on_full_disk(run, tmp_path):
    """Run a tool where ``disk`` is a full disk; returns its exit code, its output and the files that are left."""
    (tmp_path / 'disk').mkdir()

    def run_tool(tool, *arguments, room=0):
        code, output = run(sys.executable, Path(full_disk.__file__), room, TOOLS / tool, *arguments)
        if code == full_disk.NOT_ALLOWED:
            pytest.skip('a process cannot have a disk of its own here')
        return code, output, [path for path in (tmp_path / 'left').rglob('*') if path.is_file()]

    return run_tool


@pytest.fixture
def inputs(scenes, tmp_path):
    """What the programs read: a small classifier's config and weights, data, a run."""
    (tmp_path / 'small.py').write_text(SMALL)
    (tmp_path / 'scenes').symlink_to(scenes)
    torch.save(dict(state_dict=build_model(load_config(tmp_path / 'small.py')).state_dict()), tmp_path / 'small.pth')
    write_run(tmp_path / 'run', CLASSIFIERS[0], scenes)


@pytest.mark.parametrize(
    ('tool', 'arguments'),
    [
        ('train.py', ['small.py', *TRAINING]),
        ('test.py', ['small.py', 'small.pth', '--work-dir', 'disk/run', '--cfg-options', 'data_root=scenes']),
        (
            'analyze_excitation.py',
            ['small.py', 'small.pth', '--no-worth', '--out-dir', 'disk/gates', '--cfg-options', 'data_root=scenes'],
        ),
        ('predict.py', ['small.py', 'small.pth', 'scenes/val_256/Places365_val_00000001.jpg', '-o', 'disk']),
        ('compare.py', [*CLASSIFIERS, '--json', 'disk/older']),
        ('report.py', ['run', '-o', 'disk/older']),
        ('publish_model.py', ['small.pth', 'disk/small.pth']),
        ('convert_checkpoint.py', ['small.pth', 'disk/small.safetensors']),
        ('export_onnx.py', ['small.py', 'small.pth', 'disk/small.onnx']),
        ('prune.py', ['small.py', 'small.pth', 'disk/smaller.pth', '--flops', '0.8', '--no-eval']),
        ('swap_backbone.py', [CLASSIFIERS[0], 'disk/twin.py']),
        ('draw_data.py', ['disk/data', '--small']),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_nothing_fits(run_on_full_disk, inputs, tool, arguments):
    code, output, left = run_on_full_disk(tool, *arguments)
    assert code == 1 and 'Traceback' not in output, output
    last = output.strip().splitlines()[-1]
    assert 'error: ' in last and 'disk' in last and 'No space left on device' in last, output
    (older,) = (path for path in left if path.stat().st_size)
    assert older.name == 'older' and older.read_text() == 'older\n'


def test_disk_gets_full_during_a_training(run_on_full_disk, inputs):
    """The log fills the disk before there is a checkpoint."""
    more = ['default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=99']
    code, output, left = run_on_full_disk('train.py', 'small.py', *TRAINING, *more, room=60000)
    assert code == 1 and 'Traceback' not in output and 'Epoch(train)' in output, output
    assert 'No space left on device' in output.splitlines()[-1]
    assert not [path for path in left if path.suffix == '.pth']

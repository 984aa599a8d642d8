"""A study from nothing to its results, with an interruption."""

import json
import signal
import subprocess
import sys
import time
from argparse import Namespace
from queue import SimpleQueue

import psutil
import pytest
import yaml

from conftest import CONFIGS, TOOLS
from se_mm.engine.studies import StudyRun, read_study, remember_start
from se_mm.utils import InputError

CONFIG = f"""
_base_ = {str(CONFIGS / 'quickstart' / 'r18_scenes.py')!r}
model = dict(backbone=dict(stem_channels=8, base_channels=8), head=dict(in_channels=64))
train_cfg = dict(max_epochs=15, val_interval=5)
default_hooks = dict(logger=dict(interval=1))
"""


def write_study(folder, content, config=CONFIG):
    for name in ('tiny', 'se_tiny'):
        (folder / f'{name}.py').write_text(config)
    path = folder / 'small.yml'
    path.write_text(yaml.safe_dump(content))
    return path


def test_study_goes_on_after_an_interruption(run, scenes, tmp_path):
    path = write_study(
        tmp_path,
        dict(options=['--channels-last'], train_options=['--amp'], runs=[dict(configs=['tiny'], seeds=[3, 1])]),
    )
    command = [sys.executable, TOOLS / 'study.py', path, '--data-root', scenes, '--jobs', '2']
    command += ['--work-dir', tmp_path / 'work', '--results', tmp_path / 'results']
    folders = [tmp_path / 'work' / 'small' / f'tiny_seed{seed}' for seed in (3, 1)]
    first = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not all((folder / 'last_checkpoint').is_file() for folder in folders):
        assert first.poll() is None, first.stdout.read().decode()
        time.sleep(0.1)
    children = psutil.Process(first.pid).children(recursive=True)
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):  # any thread may get the second one now
        first.send_signal(number)
    first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM
    assert len(children) >= 2 and not any(child.is_running() for child in children)
    assert not (tmp_path / 'results').exists()

    code, output = run(*command)
    assert code == 0 and '2 runs, 0 finished' in output, output
    for folder, seed in zip(folders, (3, 1)):
        assert 'Epoch(train)  [1]' not in (log := (folder / 'train.log').read_text()) and 'Epoch(train) [15]' in log
        result = json.loads((tmp_path / 'results' / 'small' / f'tiny_seed{seed}.json').read_text())
        assert result['metrics'] == json.loads((folder / 'metrics.json').read_text())['metrics']
        assert (result['study'], result['config'], result['seed']) == ('small', 'tiny', seed)
        assert (
            len(result['starts']) == 2
            and f'--amp --channels-last --cfg-options randomness.seed={seed}' in result['command']
        )
        loss, error = (result['curves'][name]['points'] for name in ('training loss', 'top-1 error, %'))
        assert [position for position, _ in loss] == [epoch / 2 for epoch in range(1, 31)]
        assert [position for position, _ in error] == [5, 10, 15]
    assert all(run.is_finished(tmp_path / 'results') for run in read_study(path).runs())


@pytest.mark.parametrize(
    ('count', 'visible', 'jobs', 'processes', 'shares'),
    [
        (4, None, 3, 1, ['0', '1', '2']),
        (2, None, 3, 1, ['0', '1', '0']),
        (4, '5,GPU-a,7,2', 2, 2, ['5,GPU-a', '7,2']),
        (3, None, 2, 2, ['0,1', '2,0']),
        (2, None, 2, 4, ['0,1', '0,1']),
        (1, 'MIG-a,MIG-b,MIG-c', 2, 1, ['MIG-a', 'MIG-b']),
        (0, None, 2, 1, ['', '']),
        (0, '', 1, 2, ['']),
    ],
)
def test_runs_at_a_time_have_gpus_of_their_own(monkeypatch, count, visible, jobs, processes, shares):
    monkeypatch.syspath_prepend(TOOLS)
    from study import gpu_shares

    monkeypatch.setattr('torch.cuda.device_count', lambda: count)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert gpu_shares(jobs, processes) == shares


def test_gpus_of_a_run_are_free_again_after_it(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(TOOLS)
    import study

    (run,) = read_study(write_study(tmp_path, dict(runs=[dict(configs=['tiny'], seeds=[0])]))).runs()
    seen, gpus = [], SimpleQueue()
    gpus.put('3')

    def fail(*arguments, **options):
        seen.append(options['CUDA_VISIBLE_DEVICES'])
        sys.exit('the training failed')

    monkeypatch.setattr(study, 'train_and_test', fail)
    args = Namespace(data_root=None, jobs=1, results=tmp_path / 'results')
    for _ in range(2):
        with study.Progress(disable=True) as progress, pytest.raises(SystemExit):
            study.finish(run, tmp_path / 'work', args, study.Follower(progress, 1), gpus)
    assert seen == ['3', '3'] and gpus.get_nowait() == '3'


def test_configs_take_turns(tmp_path):
    groups = [dict(configs=['tiny', 'se_tiny'], seeds=[0, 1]), dict(configs=['tiny'], seeds=[2])]
    study = read_study(write_study(tmp_path, dict(processes=2, runs=groups)))
    assert [run.name for run in study.runs()] == [
        'tiny_seed0', 'se_tiny_seed0', 'tiny_seed1', 'se_tiny_seed1', 'tiny_seed2'
    ]  # fmt: skip
    assert study.name == 'small' and 'dist_train.sh' in study.runs()[0].command()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (dict(runs=[dict(configs=['none'], seeds=[0])]), 'names a config none, but there is no'),
        (dict(runs=[dict(configs=['tiny'])]), "cannot be read .*'seeds'"),
        (dict(runs=[dict(configs=['tiny'], seeds=[0])], seed=1), 'unknown keys seed'),
        (dict(runs=[dict(configs=['tiny'], seeds=[0, 0])]), 'tiny_seed0 is there twice'),
    ],
)
def test_mistakes_in_study_files(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_study(write_study(tmp_path, content))


def test_results_of_another_version_of_a_config_are_not_taken(tmp_path):
    path = write_study(tmp_path, dict(runs=[dict(configs=['tiny'], seeds=[0])]))
    (run,) = read_study(path).runs()
    remember_start(run, tmp_path / 'work')
    result = run.result(tmp_path / 'results')
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps(dict(config_sha256=run.config_hash, command=run.command())))
    assert run.is_finished(tmp_path / 'results')
    changed = StudyRun(
        read_study(
            write_study(tmp_path, yaml.safe_load(path.read_text()), CONFIG + 'optim_wrapper = dict(clip_grad=None)\n')
        ),
        run.config,
        0,
    )
    with pytest.raises(InputError, match='result.*tiny_seed0.json and the work dir: this is a run of another'):
        changed.is_finished(tmp_path / 'results')
    with pytest.raises(InputError, match='work: this is a run of another version'):
        remember_start(changed, tmp_path / 'work')


def test_results_of_other_options_are_not_taken(tmp_path):
    groups = [dict(configs=['tiny'], seeds=[0], train_options=[]), dict(configs=['tiny'], seeds=[1])]
    path = write_study(tmp_path, dict(train_options=['--amp'], runs=groups))
    first, second = read_study(path).runs()
    assert first.train_options == () and second.train_options == ('--amp',) and ' --amp ' in second.command()
    for run in (first, second):
        remember_start(run, tmp_path / run.name)
    (changed, *_) = read_study(write_study(tmp_path, dict(train_options=['--amp'], runs=groups[1:]))).runs()
    assert len(changed.starts(tmp_path / second.name)) == 1
    (changed,) = read_study(write_study(tmp_path, dict(train_options=['--compile'], runs=groups[1:]))).runs()
    with pytest.raises(
        InputError, match=r'tiny_seed1: this is a run with the options --amp .*small\.yml has --compile '
    ):
        changed.starts(tmp_path / second.name)
    path.write_text(yaml.safe_dump(dict(runs=[dict(groups[1], seed=1)])))
    with pytest.raises(InputError, match='unknown keys seed in runs'):
        read_study(path)


def test_empty_texts(tmp_path):
    study = read_study(write_study(tmp_path, dict(title=None, about=None, runs=[dict(configs=['tiny'], seeds=[0])])))
    assert (study.title, study.about) == ('small', '')

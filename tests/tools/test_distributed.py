"""The real launchers, two processes, real training and evaluation on drawn data."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import CONFIGS, TOOLS

DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
PLAIN = CONFIGS / 'quickstart' / 'faster_rcnn_r18_shapes.py'
CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'
TWELVE = 'AP AP50 AP75 AP_S AP_M AP_L AR1 AR10 AR100 AR_S AR_M AR_L'.split()


def data(root, epochs, detection=True):
    values = {f'{loader}_dataloader.dataset.data_root': root for loader in ('train', 'val', 'test')}
    if detection:
        values |= {f'{kind}_evaluator.ann_file': f'{root}/annotations/val.json' for kind in ('val', 'test')}
    values |= {'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': 1, 'default_hooks.logger.interval': 1}
    return ['--cfg-options', *(f'{key}={value}' for key, value in values.items())]


def last_logged(output, name):
    return float(re.findall(rf'{name}: ([\d.-]+)', output)[-1])


def test_detector_trains_resumes_is_evaluated_and_compared(run, shapes, free_port, tmp_path):
    work = tmp_path / 'work dir'
    work.mkdir()
    train = [TOOLS / 'dist_train.sh', DETECTOR, 2, '--work-dir', work]
    code, output = run(*train, '--auto-scale-lr', *data(shapes, 1), PORT=free_port)
    assert code == 0, output
    assert 'Distributed launcher: pytorch' in output and 'GPU number: 2' in output
    code, output = run(*train, '--resume', *data(shapes, 2), PORT=free_port)
    assert code == 0, output
    assert 'resumed epoch: 1' in output and 'Epoch(train) [2]' in output and 'Epoch(train) [1]' not in output
    logged = last_logged(output, 'coco/bbox_mAP')

    checkpoint = work / 'epoch_2.pth'
    test = [TOOLS / 'dist_test.sh', DETECTOR, checkpoint, 2, '--work-dir', work, '--classwise']
    code, output = run(*test, '--out', tmp_path / 'all.pkl', *data(shapes, 2), PORT=free_port)
    assert code == 0, output
    metrics = json.loads((work / 'metrics.json').read_text())
    assert [name.removeprefix('bbox_') for name in metrics['metrics']] == [*TWELVE, 'per_class']
    assert metrics['metrics']['bbox_AP'] == pytest.approx(logged, abs=6e-4)
    assert set(metrics['metrics']['bbox_per_class']) == {'circle', 'square', 'triangle'}
    assert metrics['checkpoint']['path'] == str(checkpoint) and len(metrics['checkpoint']['sha256']) == 64
    assert metrics['dataset']['images'] == 8 and metrics['processes'] == 2
    assert metrics['versions']['torch'] == torch.__version__.split('+')[0]
    predictions = json.loads((work / 'predictions.bbox.json').read_text())
    assert {'image_id', 'bbox', 'score', 'category_id'} <= set(predictions[0])
    assert (tmp_path / 'all.pkl').is_file()

    table = tmp_path / 'a.md'
    compare = [sys.executable, TOOLS / 'compare.py', PLAIN, DETECTOR, '--work-dirs', tmp_path / 'none', work]
    code, output = run(*compare, '--markdown', table, '--json', tmp_path / 'a.json')
    assert code == 0, output
    plain, se = json.loads((tmp_path / 'a.json').read_text())
    assert plain['measured'] == {} and 'not run' in output
    assert se['measured']['AP'] == pytest.approx(100 * metrics['metrics']['bbox_AP'])
    assert 0 < se['params'] - plain['params'] < 0.02 * plain['params']
    assert 0 < se['gflops'] - plain['gflops'] < 0.01 * plain['gflops']
    assert len(table.read_text().splitlines()) == 6


def test_classifier_trains_and_is_evaluated(run, scenes, free_port, tmp_path):
    options = data(scenes, 1, detection=False)
    code, output = run(TOOLS / 'dist_train.sh', CLASSIFIER, 2, *options, PORT=free_port)
    assert code == 0, output
    work = tmp_path / 'work_dirs' / 'se_r18_scenes'
    test = [TOOLS / 'dist_test.sh', CLASSIFIER, work / 'epoch_1.pth', 2]
    code, output = run(*test, *options, PORT=free_port)
    assert code == 0, output
    once = json.loads((work / 'metrics.json').read_text())
    assert set(once['metrics']) == {'scene_error/top1', 'scene_error/top5'}
    assert once['dataset']['split'] == 'val' and once['dataset']['images'] == 16
    answers = json.loads((work / 'predictions.label.json').read_text())
    assert [answer['index'] for answer in answers] == list(range(16))
    wrong = sum(answer['answers'][0] != answer['truth'] for answer in answers)
    assert once['metrics']['scene_error/top1'] == pytest.approx(100 * wrong / 16)

    test = [
        sys.executable,
        TOOLS / 'test.py',
        CLASSIFIER,
        work / 'epoch_1.pth',
        '--work-dir',
        tmp_path / 'tta',
        '--tta',
    ]
    code, output = run(*test, *options)
    assert code == 0, output
    assert 0 <= json.loads((tmp_path / 'tta' / 'metrics.json').read_text())['metrics']['scene_error/top1'] <= 100
    test[-2:] = [tmp_path / 'drawn', '--show-dir', 'drawn']
    code, output = run(*test, *options)
    assert code == 0, output
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 16


def test_detector_with_test_time_augmentation(run, shapes, tmp_path):
    checkpoint = tmp_path / 'a.pth'
    script = (
        'import sys, torch, se_mm; from mmengine.config import Config; from mmengine.registry import *\n'
        'cfg = Config.fromfile(sys.argv[1]); init_default_scope("mmdet")\n'
        'torch.save(MODELS.build(cfg.model).state_dict(), sys.argv[2])'
    )
    assert run(sys.executable, '-c', script, DETECTOR, checkpoint)[0] == 0
    test = [sys.executable, TOOLS / 'test.py', DETECTOR, checkpoint, '--tta', '--show-dir', 'drawn']
    code, output = run(*test, *data(shapes, 1))
    assert code == 0, output
    work = tmp_path / 'work_dirs' / DETECTOR.stem
    assert json.loads((work / 'metrics.json').read_text())['metrics']['bbox_AP'] is not None
    assert list(work.rglob('*.jpg')) or list(work.rglob('*.png'))


def test_refused_checkpoint_ends_all_processes(run, shapes, free_port, tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'broken')
    test = [TOOLS / 'dist_test.sh', DETECTOR, tmp_path / 'a.pth', 2]
    code, output = run(*test, *data(shapes, 1), PORT=free_port)
    assert code != 0 and 'Traceback' not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith('error: ')]
    assert 'a.pth' in line
    assert not (tmp_path / 'work_dirs').exists()


def test_mistake_is_told_once_by_all_processes(run, free_port):
    code, output = run(TOOLS / 'dist_train.sh', 'no.py', 2, PORT=free_port)
    assert code != 0 and output.count('error: config no.py does not exist') == 1, output


def test_port_in_use(run):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = run(TOOLS / 'dist_train.sh', DETECTOR, 2, PORT=port)
    assert code == 1 and f'error: port {port}' in output and f'PORT={port + 1}' in output
    code, output = run(TOOLS / 'dist_train.sh', DETECTOR, 2, PORT=70000)
    assert code == 1 and 'error: PORT=70000' in output and 'Traceback' not in output


def test_several_machines_need_an_address(run):
    code, output = run(TOOLS / 'dist_train.sh', DETECTOR, 2, NNODES=2, NODE_RANK=1)
    assert code == 1 and 'set MASTER_ADDR' in output and 'Traceback' not in output


@pytest.fixture
def machines():
    """Address of the first of two machines and what starts a program on each: network namespaces with a cable
    between them or, where making them is not allowed, two addresses of this machine."""
    names = [f'se_mm{os.getpid()}_{i}' for i in (0, 1)]

    def ip(*arguments, check=True):
        result = subprocess.run(['ip', *arguments], stderr=subprocess.PIPE, text=True)
        if check and result.returncode:
            raise PermissionError(result.stderr)

    try:
        for name in names:
            ip('netns', 'add', name)
        ip('link', 'add', 'cable0', 'netns', names[0], 'type', 'veth', 'peer', 'name', 'cable1', 'netns', names[1])
        for i, name in enumerate(names):
            ip('-n', name, 'addr', 'add', f'10.77.0.{i + 1}/24', 'dev', f'cable{i}')
            ip('-n', name, 'link', 'set', f'cable{i}', 'up')
            ip('-n', name, 'link', 'set', 'lo', 'up')
        yield '10.77.0.1', [['ip', 'netns', 'exec', name] for name in names]
    except (FileNotFoundError, PermissionError) as error:
        print(f'two addresses of one machine instead of two network namespaces: {error}')
        yield '127.0.0.2', [[], []]
    finally:
        if shutil.which('ip'):
            for name in names:
                ip('netns', 'del', name, check=False)


def test_two_machines_compute_what_one_does(run, machines, scenes, free_port, tmp_path):
    options = [*data(scenes, 1, detection=False), 'randomness.seed=0']
    script = TOOLS / 'dist_train.sh'
    one = dict(OMP_NUM_THREADS=1, PORT=free_port)  # as many threads, or sums are rounded differently
    code, output = run(script, CLASSIFIER, 2, '--work-dir', 'one', *options, **one)
    assert code == 0, output

    address, starters = machines

    def run_both(*more):
        several = dict(one, NNODES=2, MASTER_ADDR=address)
        with ThreadPoolExecutor() as pool:
            jobs = [
                pool.submit(
                    run, *start, script, CLASSIFIER, 1, '--work-dir', f'two{i}', *more, *options, **several, NODE_RANK=i
                )
                for i, start in enumerate(starters)
            ]
            return [job.result() for job in jobs]

    results = run_both()
    assert [code for code, _ in results] == [0, 0], results
    assert 'GPU number: 2' in results[0][1]
    alone, together = (
        torch.load(tmp_path / work / 'epoch_1.pth', weights_only=False)['state_dict'] for work in ('one', 'two0')
    )
    assert alone.keys() == together.keys() and all(torch.equal(alone[key], together[key]) for key in alone)
    assert not (tmp_path / 'two1' / 'epoch_1.pth').exists()

    results = run_both('--resume')  # which the second machine cannot
    assert all(code == 1 for code, _ in results)
    assert 'would resume from different checkpoints, None and epoch_1.pth' in results[0][1]


@pytest.mark.parametrize(
    'command',
    [
        ['dist_train.sh', DETECTOR],
        ['dist_train.sh', DETECTOR, 'two'],
        ['dist_test.sh', DETECTOR, 'a.pth'],
        ['slurm_train.sh', 'gpu', 'job', DETECTOR],
        ['slurm_test.sh', 'gpu', 'job', DETECTOR],
    ],
    ids=lambda command: command[0],
)
def test_usage(run, command):
    code, output = run(TOOLS / command[0], *command[1:])
    assert code == 2 and output.startswith('usage: ')


SRUN = """#!/usr/bin/env python3
# What srun does with a job's processes, on this machine.
import os, subprocess, sys
arguments = sys.argv[1:]
tasks = int(next(a for a in arguments if a.startswith('--ntasks=')).split('=')[1])
command = arguments[arguments.index('python'):]
print('srun', *arguments[:arguments.index('python')])
sys.stdout.flush()
environment = dict(os.environ, SLURM_NTASKS=str(tasks), SLURM_NODELIST='localhost')
children = [
    subprocess.Popen(command, env=dict(environment, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))) for i in range(tasks)
]
sys.exit(max(child.wait() for child in children))
"""


def test_slurm_scripts(run, shapes, free_port, tmp_path):
    srun = tmp_path / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(srun.stat().st_mode | stat.S_IEXEC)
    env = dict(GPUS=2, GPUS_PER_NODE=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port, SRUN_ARGS='--qos=a --mem=1')
    env |= dict(OMP_NUM_THREADS=1)
    work = tmp_path / 'work'
    script = 'export PATH="$0:$PATH"; exec "$@"'
    train = [TOOLS / 'slurm_train.sh', 'gpu', 'job', DETECTOR, work]
    code, output = run('bash', '-c', script, srun.parent, *train, *data(shapes, 1), **env)
    assert code == 0, output
    assert '--ntasks=2' in output and '--qos=a --mem=1' in output and 'GPU number: 2' in output
    test = [TOOLS / 'slurm_test.sh', 'gpu', 'job', DETECTOR, work / 'epoch_1.pth', '--work-dir', work]
    code, output = run('bash', '-c', script, srun.parent, *test, *data(shapes, 1), **env)
    assert code == 0, output
    assert json.loads((work / 'metrics.json').read_text())['processes'] == 2

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

import numpy as np
import pytest
import torch
from scipy.io import savemat

from conftest import CONFIGS, TOOLS

DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
PLAIN = CONFIGS / 'quickstart' / 'faster_rcnn_r18_shapes.py'
CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'
TWELVE = 'AP AP50 AP75 AP_S AP_M AP_L AR1 AR10 AR100 AR_S AR_M AR_L'.split()


def data(root, epochs):
    values = {'data_root': root, 'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': 1}
    values['default_hooks.logger.interval'] = 1
    return ['--cfg-options', *(f'{key}={value}' for key, value in values.items())]


def save_weights(run, config, path):
    """Random ones."""
    script = path.with_name('save_weights.py')
    script.write_text(
        'import sys, torch; from se_mm.utils.config import *\n'
        'cfg = load_config(sys.argv[1]); use_scope(cfg); torch.save(build_model(cfg).state_dict(), sys.argv[2])'
    )
    code, output = run(sys.executable, script, config, path)
    assert code == 0, output


@pytest.fixture
def svhn(tmp_path_factory):
    """Ten images of digits, in the files of SVHN."""
    folder = tmp_path_factory.mktemp('svhn')
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
    for split in ('train', 'test'):
        savemat(folder / f'{split}_32x32.mat', dict(X=images, y=np.arange(1, 11)[:, None]))
    return folder


def last_logged(output, name):
    return float(re.findall(rf'{name}: ([\d.-]+)', output)[-1])


def test_detector_trains_resumes_is_evaluated_and_compared(run, shapes, free_port, tmp_path):
    work = tmp_path / 'work dir'
    work.mkdir()
    train = [TOOLS / 'dist_train.sh', DETECTOR, 2, '--work-dir', work, '--channels-last']
    code, output = run(*train, '--auto-scale-lr', *data(shapes, 1), PORT=free_port)
    assert code == 0, output
    assert 'Distributed launcher: pytorch' in output and 'GPU number: 2' in output
    code, output = run(*train, '--resume', *data(shapes, 2), PORT=free_port)
    assert code == 0, output
    assert 'resumed epoch: 1' in output and 'Epoch(train) [2]' in output and 'Epoch(train) [1]' not in output
    logged = last_logged(output, 'coco/bbox_mAP')

    checkpoint = work / 'epoch_2.pth'
    test = [TOOLS / 'dist_test.sh', DETECTOR, checkpoint, 2, '--work-dir', work, '--channels-last', '--classwise']
    code, output = run(*test, '--out', 'all.pkl', '--show-dir', 'drawn', *data(shapes, 2), PORT=free_port)
    assert code == 0, output
    assert {path.name for path in work.rglob('drawn/*')} == {path.name for path in (shapes / 'val').iterdir()}
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

    (work / 'predictions.bbox.json').unlink()  # the config that the evaluation has left behind writes elsewhere
    left, again = work / DETECTOR.name, tmp_path / 'again'
    code, output = run(sys.executable, TOOLS / 'test.py', left, checkpoint, '--work-dir', again)
    assert code == 0 and not (work / 'predictions.bbox.json').exists(), output
    found = json.loads((again / 'metrics.json').read_text())['metrics']
    assert found['bbox_AP'] == pytest.approx(metrics['metrics']['bbox_AP'], abs=1e-3)
    assert len(json.loads((again / 'predictions.bbox.json').read_text())) == len(predictions)

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
    options = data(scenes, 1)
    code, output = run(TOOLS / 'dist_train.sh', CLASSIFIER, 2, *options, PORT=free_port)
    assert code == 0, output
    work = tmp_path / 'work_dirs' / 'se_r18_scenes'
    test = [TOOLS / 'dist_test.sh', CLASSIFIER, work / 'epoch_1.pth', 2]
    code, output = run(*test, '--show-dir', 'all', *options, PORT=free_port)
    assert code == 0, output
    assert len(list((tmp_path / 'all').iterdir())) == 16
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
    assert 0 <= json.loads((tmp_path / 'tta' / 'metrics_tta.json').read_text())['metrics']['scene_error/top1'] <= 100
    assert (tmp_path / 'tta' / 'predictions_tta.label.json').is_file()

    (work / 'predictions.label.json').unlink()  # the config that the evaluation has left behind writes elsewhere
    left, again = work / CLASSIFIER.name, tmp_path / 'again'
    code, output = run(sys.executable, TOOLS / 'test.py', left, work / 'epoch_1.pth', '--work-dir', again)
    assert code == 0 and not (work / 'predictions.label.json').exists(), output
    assert len(json.loads((again / 'predictions.label.json').read_text())) == 16
    test[-2:] = [tmp_path / 'drawn', '--show-dir', 'drawn']
    code, output = run(*test, *options)
    assert code == 0, output
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 16


def test_detector_with_test_time_augmentation(run, shapes, tmp_path):
    checkpoint = tmp_path / 'a.pth'
    save_weights(run, DETECTOR, checkpoint)
    test = [sys.executable, TOOLS / 'test.py', DETECTOR, checkpoint, '--tta', '--show-dir', 'drawn']
    code, output = run(*test, *data(shapes, 1))
    assert code == 0, output
    work = tmp_path / 'work_dirs' / DETECTOR.stem
    assert json.loads((work / 'metrics_tta.json').read_text())['metrics']['bbox_AP'] is not None
    assert list(work.rglob('*.jpg')) or list(work.rglob('*.png'))


def test_drawn_images_without_names_are_numbered(run, svhn, free_port, tmp_path):
    """As many as there are, whichever process draws them."""
    config = CONFIGS / 'variations' / 'r18_svhn.py'
    save_weights(run, config, tmp_path / 'a.pth')
    options = ['--cfg-options', f'data_root={svhn}', 'test_dataloader.batch_size=4', 'test_dataloader.num_workers=0']
    test = [TOOLS / 'dist_test.sh', config, 'a.pth', 2, '--show-dir', 'drawn']
    code, output = run(*test, *options, 'test_dataloader.persistent_workers=False', PORT=free_port)
    assert code == 0, output
    assert sorted(int(path.name.partition('_')[0]) for path in (tmp_path / 'drawn').iterdir()) == list(range(10))


def test_parameters_without_gradients(run, scenes, free_port):
    """Which a config's own model wrapper allows."""
    options = [*data(scenes, 1), 'train_dataloader.batch_size=4']
    options += ['model.backbone.out_indices=[2]', 'model.head.in_channels=128']
    train = [TOOLS / 'dist_train.sh', CLASSIFIER, 2, *options]
    code, output = run(*train, 'model_wrapper_cfg.find_unused_parameters=True', PORT=free_port)
    assert code == 0, output
    code, output = run(*train, 'model_wrapper_cfg.type=Wrapper', PORT=free_port)
    assert code == 1 and "model_wrapper_cfg.type='Wrapper' is no registered model wrapper" in output, output


def test_sync_norms_of_cpu_processes_are_refused(run, scenes, free_port, tmp_path):
    options = [*data(scenes, 1), 'model.backbone.norm_cfg.type=SyncBN']
    options.append('model.backbone.norm_cfg.requires_grad=True')
    code, output = run(TOOLS / 'dist_train.sh', CLASSIFIER, 2, *options, PORT=free_port)
    assert code == 1 and 'Traceback' not in output
    (line,) = [line for line in output.splitlines() if line.startswith('error: ')]
    assert 'SyncBN needs GPUs' in line and 'set model.backbone.norm_cfg.type=BN by --cfg-options' in line
    code, output = run(TOOLS / 'dist_train.sh', CLASSIFIER, 2, *options[:-2], 'sync_bn=torch', PORT=free_port)
    assert code == 1 and 'set sync_bn=None by --cfg-options' in output and 'Traceback' not in output
    assert not list(tmp_path.iterdir())
    code, output = run(sys.executable, TOOLS / 'train.py', CLASSIFIER, *options)
    assert code == 0, output


def test_processes_of_mpi(run, scenes, free_port):
    """With the variables that OpenMPI's mpirun sets."""
    train = [sys.executable, TOOLS / 'train.py', CLASSIFIER, '--launcher', 'mpi', '--work-dir', 'work']
    env = dict(OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_LOCAL_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port)

    def start(rank, *options):
        told = dict(env, OMPI_COMM_WORLD_RANK=rank, OMPI_COMM_WORLD_LOCAL_RANK=rank)
        return run(*train, *data(scenes, 1), *options, **told)

    with ThreadPoolExecutor() as pool:
        (code, output), (other, _) = pool.map(start, (0, 1))
        assert code == other == 0, output
        assert 'Distributed launcher: mpi' in output and 'GPU number: 2' in output
        results = list(pool.map(lambda rank: start(rank, 'model.head.num_classes=9'), (0, 1)))
    assert [code for code, _ in results] == [1, 1]
    assert ['gives 8 classes' in output for _, output in results] == [True, False]  # one checks for its machine


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
    options = [*data(scenes, 1), 'randomness.seed=0']
    script = TOOLS / 'dist_train.sh'
    one = dict(OMP_NUM_THREADS=1, PORT=free_port)  # as many threads, or sums are rounded differently
    code, output = run(script, CLASSIFIER, 2, '--work-dir', 'one', *options, **one)
    assert code == 0, output

    def run_both(address, starters, *more, fork):
        several = dict(one, NNODES=2, MASTER_ADDR=address)
        with ThreadPoolExecutor() as pool:
            jobs = []
            for i, start in enumerate(starters):
                train = [*start, script, CLASSIFIER, 1, '--work-dir', f'two{i}', *more, *options]
                jobs.append(pool.submit(run, *train, **several, NODE_RANK=i, fork=fork))
            return [job.result() for job in jobs]

    results = run_both(*machines, fork=False)  # forked programs would leave the namespaces
    assert [code for code, _ in results] == [0, 0], results
    assert 'GPU number: 2' in results[0][1]
    alone, together = (
        torch.load(tmp_path / work / 'epoch_1.pth', weights_only=False)['state_dict'] for work in ('one', 'two0')
    )
    assert alone.keys() == together.keys() and all(torch.equal(alone[key], together[key]) for key in alone)
    assert not (tmp_path / 'two1' / 'epoch_1.pth').exists()

    results = run_both('127.0.0.2', [[], []], '--resume', fork=True)  # which the second machine cannot
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

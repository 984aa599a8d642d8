"""The pages of docs/ run as written: their blocks marked bash, one after the other, in a folder with this project's
tools and configs. Those marked sh need GPUs, downloads or Slurm."""

import json
import re
import statistics
import sys

import cv2
import numpy as np
import pytest
import torch

from conftest import ROOT, TOOLS
from se_mm.analysis.comparison import signed
from se_mm.weights import read_checkpoint


@pytest.fixture
def run_page(run, tmp_path):
    def run_blocks(name):
        (tmp_path / 'tools').symlink_to(TOOLS)
        (tmp_path / 'configs').symlink_to(ROOT / 'configs')
        blocks = re.findall(r'```bash\n(.*?)```', (ROOT / 'docs' / f'{name}.md').read_text(), re.DOTALL)
        code, output = run('bash', '-euxo', 'pipefail', '-c', '\n'.join(blocks), timeout=600)
        assert code == 0, output
        return output

    return run_blocks


def test_mmdet_config(run_page, tmp_path):
    output = run_page('mmdet_config')
    assert "checkpoint='timm://seresnet50.ra2_in1k'" in output
    assert json.loads((tmp_path / 'work_dirs' / 'faster_rcnn_se' / 'metrics.json').read_text())['metrics']
    assert re.search(r'faster_rcnn_se \W+ [\d.]+', output)


def test_mmpretrain_config(run_page, tmp_path):
    run_page('mmpretrain_config')
    assert "checkpoint='timm://" not in (tmp_path / 'se_r50.py').read_text()
    assert "checkpoint='timm://seresnet50.ra2_in1k'" in (tmp_path / 'se_r50_cub.py').read_text()
    metrics = json.loads((tmp_path / 'work_dirs' / 'se_scenes' / 'metrics.json').read_text())['metrics']
    assert set(metrics) == {'scene_error/top1', 'scene_error/top5'}
    assert cv2.imread(str(tmp_path / 'predictions' / 'Places365_val_00000001.png')) is not None


def test_coco_data(run_page, tmp_path):
    run_page('coco_data')
    metrics = json.loads((tmp_path / 'work_dirs' / 'mine' / 'metrics.json').read_text())['metrics']
    assert set(metrics['bbox_per_class']) == {'circle', 'square', 'triangle'}


def test_pretrain(run_page, tmp_path):
    output = run_page('pretrain')
    assert 'Epoch(val) [1]' in output.partition('detect.py')[2]
    first, then = (
        read_checkpoint(path)['state_dict']
        for path in (next((tmp_path / 'pretrained').iterdir()), tmp_path / 'work_dirs' / 'detect' / 'epoch_1.pth')
    )
    kept = [key for key in then if key.startswith(('backbone.conv1.', 'backbone.layer1.'))]
    assert any('se_layer' in key for key in kept)
    assert all(torch.equal(first[key], then[key]) for key in kept)  # frozen
    assert not torch.equal(first['backbone.layer2.0.conv1.weight'], then['backbone.layer2.0.conv1.weight'])


def test_deploy(run_page, run, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'photo.jpg'), image)
    (tmp_path / 'docs').symlink_to(ROOT / 'docs')
    output = run_page('deploy')
    assert 'the last convolution is 3x3' in output and 'gates: 0 of 18' in output and 'others: 20 of 20' in output
    exported, _ = re.findall(r'((?:^[a-z]+: 0\.\d{4}\n){5})', output, re.MULTILINE)
    config = ROOT / 'configs' / 'studies' / 'se_r20_cifar10.py'
    command = sys.executable, TOOLS / 'predict.py', config, 'se_mm://se_r20_cifar10', 'photo.jpg'
    code, predicted = run(*command, COLUMNS=200)
    best = [(name, float(score)) for name, score in re.findall(r'(\w+): (0\.\d{4})', exported)]
    for name, score in best[:3]:
        assert code == 0 and f'{name} {score:.2f}' in predicted
    weights = read_checkpoint(str(tmp_path / 'deployed' / 'se_r20_cifar10.pth'))['state_dict']
    assert 'backbone.stage3.2.conv2.bias' in weights and not any('running_mean' in name for name in weights)


def test_pruning(run_page, tmp_path):
    output = run_page('pruning')
    assert 'top-1 error, percent' in output and 'Epoch(val) [1]' in output.partition('half.json')[2]
    numbers = json.loads((tmp_path / 'smaller' / 'half.json').read_text())
    assert 0.3 < numbers['after']['backbone_flops'] / numbers['before']['backbone_flops'] <= 0.5


@pytest.mark.parametrize('study', ['cifar10', 'bccd'])
def test_tables_of_pruned_networks(study):
    """The means of the stored numbers."""
    page = (ROOT / 'docs' / 'pruning.md').read_text()
    runs = json.loads((ROOT / 'docs' / 'pruning' / f'{study}.json').read_text())['runs']
    for flops, importance in {(run['flops'], run['importance']) for run in runs}:
        mine = [run for run in runs if (run['flops'], run['importance']) == (flops, importance)]
        cells = []
        for values in ([run['pruned'] for run in mine], [run['trained'] for run in mine]):
            spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.2f}{spread}')
        assert f'| {flops:.0%} | {importance} | {len(mine)} | {cells[0]} | {cells[1]} |'.replace('%', ' %') in page


def test_two_machines(run_page):
    assert 'all weights equal: True' in run_page('two_machines')


def test_report(run_page, tmp_path):
    output = run_page('report')
    assert re.search(
        r'se_r18_scenes +│ top1 +│ [+-]?[\d.]+ +│ [+-]?[\d.]+ to [+-]?[\d.]+ +│ (inside the noise|better|worse)', output
    )
    page = (tmp_path / 'report.html').read_text()
    assert page.count('data:image/svg+xml') == 2 and page.count('data:image/jpeg') >= 6 and 'note:' not in output


def test_excitation(run_page, tmp_path):
    output = run_page('excitation')
    assert re.search(r'│ SE_5_2 +│ [\d.]+ +│ [\d.]+ % +│ [\d.]+ \(chance [\d.]+\)', output)
    assert (tmp_path / 'gates' / 'excitation.html').read_text().count('data:image/svg+xml') == 4


def test_gates_in_python(tmp_path, monkeypatch):
    """The lines of the page, with timm's network."""
    import timm

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, images = timm.create_model('seresnet18', num_classes=2), torch.randn(4, 3, 32, 32)
    names = dict(model=model, images=images, classes=['cat', 'dog'], loader=[(images, torch.tensor([0, 1, 1, 0]))])
    for lines in re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'excitation.md').read_text(), re.DOTALL):
        exec(lines, names)
    assert names['gates'].shape == (4, 64) and names['statistics'].images == 4
    page = (tmp_path / 'gates' / 'excitation.html').read_text()
    assert 'Gates of my network' in page and page.count('data:image/svg+xml') == 3


@pytest.mark.parametrize(
    'heading, study, network',
    [
        ('Variants', 'cifar10_variants', 'r20'),
        ('Variants and reduction ratios in ResNet-8', 'cifar10_r8', 'r8'),
    ],
)
def test_table_of_variants(heading, study, network):
    page = (ROOT / 'docs' / 'excitation.md').read_text()
    section = page.partition(f'### {heading}\n')[2].partition('\n### ')[0]
    rows = re.findall(r'^\| (se\S*) \| (\d) \| (.*) \|$', section, re.MULTILINE)
    folder = ROOT / 'docs' / 'excitation' / study
    files = {f'{name}_{network}_cifar10_seed{seed}.json': cells for name, seed, cells in rows}
    assert set(files) == {path.name for path in folder.iterdir()}
    for name, cells in files.items():
        (found,) = json.loads((folder / name).read_text())
        roles = {layer['name']: layer['role'] for layer in found['layers']}
        (mean,) = (
            each
            for each in found['replacements']
            if each['onwards'] and each['replacement'] == 'mean' and each['layer'] == next(iter(roles))
        )
        last = found['layers'][-1]
        loss, low, high = (signed(mean[key], 2) for key in ('loss', 'low', 'high'))
        assert cells.split(' | ') == [
            f'{found["value"]:.2f}',
            ', '.join(layer for layer, role in roles.items() if role == 'works') or '-',
            str(list(roles.values()).count('static')),
            f'{last["mean"]:.2f}',
            f'{last["high"]:.0%}'.replace('%', ' %'),
            last['role'],
            f'{loss} ({low} to {high})',
        ]


@pytest.mark.parametrize(
    'heading, network, seeds, layers',
    [
        ('CIFAR-10', 'se_r20_cifar10', 3, 9),
        ('Scenes', 'se_r18_scenes8', 3, 8),
        ('Blood cells', 'faster_rcnn_se_r18_bccd', 1, 8),
    ],
)
def test_tables_of_trained_networks(heading, network, seeds, layers):
    """The means of the stored numbers of the networks."""
    folder, page = ROOT / 'docs' / 'excitation', (ROOT / 'docs' / 'excitation.md').read_text()
    section = page.partition(f'### {heading}\n')[2].partition('\n### ')[0]
    rows = re.findall(r'^\| (SE_\d_\d) \| (.*) \|$', section, re.MULTILINE)
    found = [json.loads((folder / f'{network}_seed{seed}.json').read_text())[0]['layers'] for seed in range(seeds)]
    keys = ('mean', 'from_mean', 'eta_squared_class', 'high', 'one_loss', 'mean_loss', 'shuffled_loss')
    two_digits, points = '{:.2f}'.format, lambda loss: signed(loss, 2)
    formats = (two_digits, '{:.3f}'.format, two_digits, '{:.0%}'.format, points, points, points)
    assert len(rows) == layers
    for (name, cells), *of_seeds in zip(rows, *found, strict=True):
        assert all(layer['name'] == name for layer in of_seeds)
        means = [sum(layer[key] for layer in of_seeds) / seeds for key in keys]
        expected = [form(mean).replace('%', ' %') for form, mean in zip(formats, means)]
        assert cells.split(' | ') == [*expected, ', '.join(layer['role'] for layer in of_seeds)]


BACKENDS = dict(
    TensorboardVisBackend=('tensorboard', '*/vis_data/events.out.tfevents.*'),
    WandbVisBackend=('wandb', '*/vis_data/wandb/offline-run-*/*.wandb'),
)


@pytest.mark.parametrize('backend', BACKENDS)
def test_results_reach_other_programs(run, shapes, tmp_path, backend):
    """The lines of the page, in a config of a detector, without a network."""
    package, files = BACKENDS[backend]
    pytest.importorskip(package)
    lines = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'report.md').read_text(), re.DOTALL)
    config = tmp_path / 'a.py'
    base = ROOT / 'configs' / 'quickstart' / 'faster_rcnn_r18_shapes.py'
    config.write_text(f'_base_ = {str(base)!r}\n{"".join(lines)}'.replace('TensorboardVisBackend', backend))
    options = [f'{loader}_dataloader.dataset.data_root={shapes}' for loader in ('train', 'val')]
    options += [f'val_evaluator.ann_file={shapes}/annotations/val.json', 'default_hooks.visualization.interval=1']
    options += ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
    code, output = run(sys.executable, TOOLS / 'train.py', config, '--cfg-options', *options, WANDB_MODE='offline')
    assert code == 0, output
    work = tmp_path / 'work_dirs' / 'a'
    (written,) = work.glob(files)
    assert list(work.glob('*/vis_data/scalars.json'))
    if package == 'tensorboard':
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(written)).Reload()
        assert {'loss', 'lr', 'coco/bbox_mAP'} <= set(events.Tags()['scalars']) and events.Tags()['images']
    else:
        content = written.read_bytes()
        assert all(name in content for name in (b'coco/bbox_mAP', b'loss_rpn_cls', b'media/images'))

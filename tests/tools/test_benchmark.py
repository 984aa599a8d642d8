import csv
import itertools
import json
import re
import runpy
import sys

import torch

from conftest import ROOT, TOOLS
from se_mm.analysis import read_costs
from se_mm.analysis.figures import LABELS
from se_mm.conversion.onnx_file import RUNTIMES


def test_targets_and_variants(run, tmp_path):
    small = ('--batch-size', 4, '--size', 64, '--depth', 18, '--repeats', 3)
    code, output = run(
        sys.executable, TOOLS / 'benchmark.py', '--parts', 'target', 'variants', 'deployed', 'runtimes', *small,
        '--out', 'results/small',
        CUDA_VISIBLE_DEVICES='', COLUMNS=160,
    )  # fmt: skip
    assert code == 0, output
    assert output.count('not measured') == 8  # five of GPUs, two of the detector, one compiled
    with open(tmp_path / 'results' / 'small.csv', newline='') as file:
        rows = {(row['part'], row['variant'], row['mode']): row for row in csv.DictReader(file)}
    assert {name for part, name, _ in rows if part == 'deployed'} == {'plain deployed', 'deployed'}
    assert {name for part, name, _ in rows if part == 'deployed and trained'} == {'plain', 'fused', 'deployed'}
    for runtime in ('onnxruntime', 'openvino', 'onnxruntime int8', 'openvino int8'):
        assert {name for part, name, _ in rows if part == runtime} == {'plain deployed', 'deployed'}
    names = {name for part, name, _ in rows if part == 'variants'}
    assert {'plain', 'fused', 'unfused', 'mmpretrain plain', 'timm plain'} <= names
    for (_, name, mode), row in rows.items():
        assert 0 < float(row['step_ms_p20']) <= float(row['step_ms_p50']) <= float(row['step_ms_p80'])
        assert 'torch=' in row['versions'] and row['device'] and row['threads']
        if name == 'plain':
            assert float(row['step_ratio_p20']) == float(row['step_ratio_p80']) == 1
        if mode == 'train':
            forward, backward = float(row['forward_ms_p20']), float(row['backward_ms_p20'])
            assert forward + backward < float(row['step_ms_p80'])
            assert int(row['stored_bytes']) > 0
    stored = {name: float(rows['variants', name, 'train']['stored_ratio']) for name in names}
    assert stored['plain'] == 1 and stored['fused'] <= stored['unfused'] and stored['unfused'] > 1.1
    names = ['small.csv', 'small.png', 'small_details.png']
    assert sorted(path.name for path in (tmp_path / 'results').iterdir()) == names
    assert all((tmp_path / 'results' / name).read_bytes().startswith(b'\x89PNG') for name in names[1:])


def test_maps_with_their_channels_last(run, tmp_path):
    small = ('--batch-size', 2, '--size', 64, '--depth', 18, '--repeats', 1, '--channels-last')
    code, output = run(
        sys.executable, TOOLS / 'benchmark.py', '--parts', 'target', *small, '--out', 'last', CUDA_VISIBLE_DEVICES=''
    )
    assert code == 0, output
    assert {cost.layout for cost in read_costs(tmp_path / 'last.csv')} == {'channels_last'}


def test_compiling_without_a_compiler(run, tmp_path):
    command = sys.executable, TOOLS / 'benchmark.py', '--parts', 'variants', '--compile'
    code, output = run(*command, CUDA_VISIBLE_DEVICES='', CXX='no-compiler', fork=False)
    assert code == 1 and output.splitlines()[-1].startswith('error: --compile: torch.compile needs a C++ compiler')
    assert 'Traceback' not in output and not list(tmp_path.iterdir())


def test_all_networks_return_one_map():
    tool = runpy.run_path(str(TOOLS / 'benchmarked.py'))
    networks = tool['networks_here'](50) | tool['networks_elsewhere'](50)
    assert set(networks) == {'plain', 'fused', 'unfused', *LABELS}
    for name, build in networks.items():
        out = build()(torch.zeros(2, 3, 64, 64))
        maps = out if isinstance(out, tuple | list) else [out]
        assert [tuple(m.shape) for m in maps] == [(2, 2048, 2, 2)], name


def test_committed_numbers_are_shown(run, tmp_path):
    (tmp_path / 'costs.csv').write_bytes((ROOT / 'docs' / 'benchmark_cpu.csv').read_bytes())
    code, output = run(sys.executable, TOOLS / 'benchmark.py', '--plot', 'costs.csv', COLUMNS=160)
    assert code == 0 and re.search(r'stored activations .* 1\.004 .* reached', output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['costs.csv', 'costs.png', 'costs_details.png']


def test_page_on_deployment_quotes_the_committed_numbers():
    costs = read_costs(ROOT / 'docs' / 'benchmark_deployed.csv')
    found = {(cost.part, cost.variant, cost.batch, cost.compiled): cost for cost in costs}
    page = (ROOT / 'docs' / 'deploy.md').read_text()

    def quoted(ratio):
        return f'{ratio.p50:.2f} ({ratio.p20:.2f} to {ratio.p80:.2f})'

    def milliseconds(time):
        return f'{time.p50:.0f}' if time.p50 >= 100 else f'{time.p50:.1f}'

    both = 'deployed and trained'
    for batch, compiled in itertools.product((1, 8), (False, True)):
        ratios = [found[both, name, batch, compiled].step_ratio for name in ('deployed', 'fused')]
        assert f'| {batch} | {"yes" if compiled else "no"} | {" | ".join(map(quoted, ratios))} |' in page
    runs = [('deployed', batch, compiled) for batch, compiled in itertools.product((1, 8), (False, True))]
    runs += [(f'{runtime}{dtype}', 1, False) for runtime in RUNTIMES for dtype in ('', ' int8')]
    for part, batch, compiled in runs:
        plain, se = (found[part, name, batch, compiled] for name in ('plain deployed', 'deployed'))
        times = ' | '.join(milliseconds(cost.step_ms) for cost in (plain, se))
        assert f'| {batch} | {times} | {quoted(se.step_ratio)} |' in page, part


def test_page_on_deployment_quotes_the_parts():
    found = json.loads((ROOT / 'docs' / 'deployed_parts.json').read_text())
    page = (ROOT / 'docs' / 'deploy.md').read_text()

    def quoted(name, part):
        return '{:.1f} ({:.1f} to {:.1f})'.format(*found[name][part])

    for part, names in dict(
        scale=('PyTorch', 'torch.compile'), products=('PyTorch',), calls=('PyTorch',), means=('PyTorch',)
    ).items():
        for name in names:
            (key,) = (key for key in found[name] if key.startswith(part))
            assert quoted(name, key) in page, (name, key)
    gates = quoted('torch.compile', 'means, products and activations of gates')
    assert f'{gates}, with the means' in page and f'means and gates in {gates[:3]} ms' in page
    assert f'most of the {found["PyTorch"]["all of SE"][0]:.1f} ms go' in page
    for name in ('PyTorch', 'torch.compile'):
        assert f'{quoted(name, "all of SE")} of {found[name]["ResNet-50"][0]:.0f} |' in page
    kinds = {  # of onnxruntime, of OpenVINO
        'convolutions': (['Conv'], ['Convolution']),
        'gates': (['Conv of gates'], ['Convolution of gates']),
        'means': (['GlobalAveragePool'], ['ReduceMean']),
        'scale, sum, ReLU': (['Mul', 'Add', 'Relu'], ['Subgraph']),
        'layouts of maps': (['ReorderInput', 'ReorderOutput'], ['Reorder']),
        'all': (['all'], ['all']),
    }
    for row, names in kinds.items():
        cells = []
        for name, parts in zip(('onnxruntime', 'OpenVINO'), names):
            sums = (sum(found[name][part][i] for part in parts) for i in (0, 1))
            cells += [f'{value:.1f}' if value else '' for value in sums]
        assert f'| {row} | {" | ".join(cells)} |'.replace('|  |', '| |') in page, (row, cells)


def test_pages_quote_the_committed_numbers():
    costs = read_costs(ROOT / 'docs' / 'benchmark_cpu.csv')
    columns = {
        'stored activations': ('variants', 'train', False, 'stored_ratio'),
        'training step': ('variants', 'train', False, 'step_ratio'),
        'inference': ('variants', 'inference', False, 'step_ratio'),
        'Faster R-CNN: stored activations': ('detector', 'train', False, 'stored_ratio'),
        'Faster R-CNN: training step': ('detector', 'train', False, 'step_ratio'),
        'compiled: stored activations': ('variants', 'train', True, 'stored_ratio'),
        'compiled: training step': ('variants', 'train', True, 'step_ratio'),
        'compiled: inference': ('variants', 'inference', True, 'step_ratio'),
    }
    tables = {}
    for path in (ROOT / 'README.md', ROOT / 'docs' / 'cost.md'):
        for table in re.findall(r'^\| plain network of mmdet = 1 \|.*\n(?:\|.*\n)+', path.read_text(), re.MULTILINE):
            header, _, *lines = ([cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines())
            tables[path.name] = {
                (name, title): cell for name, *cells in lines for title, cell in zip(header[1:], cells)
            }
    assert 'cost.md' in tables
    for page, cells in tables.items():
        for (label, title), cell in cells.items():
            *setting, field = columns[title]
            found = [
                getattr(cost, field)
                for cost in costs
                if [cost.part, cost.mode, cost.compiled] == setting
                and (LABELS.get(cost.variant), cost.remark) == (label.replace('`', ''), '')
            ]
            expected = ''
            if found and field == 'stored_ratio':
                expected = f'{found[0]:.3f}'
            elif found:
                expected = '{1:.2f} ({0:.2f} to {2:.2f})'.format(*found[0])
            assert cell == expected, (page, label, title)


def test_mistakes_are_named(run, tmp_path):
    (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
    for name, words in (('other.csv', 'is not a CSV file of'), ('missing.csv', 'missing.csv not found')):
        code, output = run(sys.executable, TOOLS / 'benchmark.py', '--plot', name)
        assert code != 0 and words in output and 'Traceback' not in output

import csv
import sys

from conftest import TOOLS


def test_targets_and_variants(run, tmp_path):
    small = ('--batch-size', 4, '--size', 64, '--depth', 18, '--repeats', 3)
    code, output = run(
        sys.executable, TOOLS / 'benchmark.py', '--parts', 'target', 'variants', *small, '--out', 'results/small',
        CUDA_VISIBLE_DEVICES='', COLUMNS=160,
    )  # fmt: skip
    assert code == 0, output
    assert output.count('not measured') == 6  # four of GPUs, two of the detector
    with open(tmp_path / 'results' / 'small.csv', newline='') as file:
        rows = {(row['part'], row['variant'], row['mode']): row for row in csv.DictReader(file)}
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
            assert int(row['kept_bytes']) > 0
    kept = {name: float(rows['variants', name, 'train']['kept_ratio']) for name in names}
    assert kept['plain'] == 1 and kept['fused'] <= kept['unfused'] and kept['unfused'] > 1.1
    assert (tmp_path / 'results' / 'small.png').read_bytes().startswith(b'\x89PNG')
    assert sorted(path.name for path in (tmp_path / 'results').iterdir()) == ['small.csv', 'small.png']


def test_mistakes_are_named(run, tmp_path):
    (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
    for name, words in (('other.csv', 'is not a CSV file of this program'), ('missing.csv', 'missing.csv not found')):
        code, output = run(sys.executable, TOOLS / 'benchmark.py', '--plot', name)
        assert code != 0 and words in output and 'Traceback' not in output

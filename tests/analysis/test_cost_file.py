from dataclasses import replace

import pytest

from se_mm.analysis import Cost, Quantiles, cost_writer, read_costs
from se_mm.utils import InputError

TRAINED = Cost(
    part='variants', variant='fused', mode='train', batch=8, height=224, width=320, depth=50, dtype='float32',
    layout='contiguous', compiled=True, forward_ms=Quantiles(1.0, 2.0, 3.5), forward_ratio=Quantiles(0.9, 1.0, 1.1),
    step_ms=Quantiles(4.0, 5.0, 6.0), step_ratio=Quantiles(1.0, 1.03, 1.1), stored_bytes=12, stored_ratio=1.004,
    device='CPU, fast', threads=2, allocator='default', versions='torch=2 numpy=2',
)  # fmt: skip
NOT_MEASURED = replace(TRAINED, compiled=False, step_ms=None, stored_bytes=None, stored_ratio=None, remark='"full"')


def write(path, costs):
    with cost_writer(path) as write_cost:
        for cost in costs:
            write_cost(cost)
            assert not path.exists()
    return path


def test_costs_are_read_as_written(tmp_path):
    path = write(tmp_path / 'folder' / 'costs.csv', [TRAINED, NOT_MEASURED])
    assert read_costs(path) == [TRAINED, NOT_MEASURED]
    assert [file.name for file in path.parent.iterdir()] == ['costs.csv']


def test_a_run_that_breaks_off_leaves_its_lines(tmp_path):
    path = write(tmp_path / 'costs.csv', [NOT_MEASURED])
    with pytest.raises(KeyboardInterrupt), cost_writer(path) as write_cost:
        write_cost(TRAINED)
        raise KeyboardInterrupt
    assert read_costs(path) == [NOT_MEASURED] and read_costs(tmp_path / '.costs.csv') == [TRAINED]


def test_files_of_older_releases(tmp_path):
    path = write(tmp_path / 'costs.csv', [TRAINED])
    path.write_text(path.read_text().replace('stored_', 'kept_'))
    assert read_costs(path) == [TRAINED]


def test_other_files_are_refused(tmp_path):
    path = write(tmp_path / 'costs.csv', [TRAINED])
    text = path.read_text()
    for wrong, words in (
        ('', 'no lines'),
        (text.partition('\n')[0], 'no lines'),
        (text.replace('step_ms_p80', 'other'), 'no column step_ms_p80'),
        (text.replace('1.03', 'fast'), 'fast'),
        (text.replace('torch=2', 'torch=2,'), 'argument'),
    ):
        path.write_text(wrong)
        with pytest.raises(InputError, match=f'is not a CSV file of tools/benchmark.py: .*{words}'):
            read_costs(path)
    path.write_bytes(b'\x89PNG\xff\x00')
    with pytest.raises(InputError, match='is not a CSV file'):
        read_costs(path)
    with pytest.raises(InputError, match='missing.csv not found'):
        read_costs(tmp_path / 'missing.csv')

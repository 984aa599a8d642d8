import json
import sys

import pytest
import triton
from packaging.version import Version

from conftest import ROOT

OF_MAPS = ('_moments', '_scale_add_relu', '_masked_sums', '_input_gradient')
OF_ROWS = ('_normalise', '_gate_gradients', '_gates', '_excitation_gradients', '_excitation_weights', '_coefficients')


@pytest.mark.skipif(
    Version(triton.__version__) < Version('3.3'), reason='Triton before 3.3 has another interface to its compiler'
)
@pytest.mark.parametrize('names', [OF_MAPS, OF_ROWS], ids=['of maps', 'of rows'])
def test_compiles_for_gpus(names, run, tmp_path):
    """For Ampere, Hopper and Blackwell; maps are read and written 16 bytes at a time, and nothing is spilled.

    Threads exchange nothing in the loops over maps.

    The interpreter, in which other tests run the kernels without a GPU, knows no types, registers or memory accesses.
    """
    script = ROOT / '.dev_scripts' / 'kernel_resources.py'
    arguments = ['--kernels', *names, '--dtypes', 'bfloat16', 'float64', '--json', 'rows.json', '-o', 'page.md']
    code, output = run(sys.executable, script, *arguments, TRITON_CACHE_DIR='cache', fork=False)
    assert code == 0, output
    rows = json.loads((tmp_path / 'rows.json').read_text())
    assert len(rows) == len(names) * (2 * 2 if names == OF_MAPS else 2) * 3  # layouts, dtypes, GPUs
    for row in rows:
        assert row['dtype'] == 'float64' or (row['spilled'] == 0 and row['occupancy'] >= 0.25), row
        assert (row['wide'] > 0 and row['exchanges'] == 0) or names == OF_ROWS, row
    page = (tmp_path / 'page.md').read_text()
    assert all(page.count(f'| {name.strip("_")} |') == len(rows) // len(names) // 3 for name in names)

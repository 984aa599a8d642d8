import sys

import pytest

from se_mm.utils.versions import conflict, installed_versions

ONEDL = dict(torch='2.12.1', mmengine='0.10.12', mmcv='2.3.6', mmdet='3.5.1', mmpretrain='1.3.6')
ORIGINAL = dict(torch='2.5.1', mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', mmpretrain='1.2.0')


def test_stacks_that_work():
    assert conflict(ONEDL) is None and conflict(ORIGINAL) is None
    assert conflict(dict(ORIGINAL, torch='2.12.1')) is None  # with these tools; mmengine's cannot read its checkpoints
    assert conflict({k: v for k, v in ONEDL.items() if k not in ('mmdet', 'mmpretrain')}) is None
    assert conflict(installed_versions()) is None


@pytest.mark.parametrize(
    'versions, words',
    [
        ({k: v for k, v in ONEDL.items() if k != 'mmcv'}, 'mmcv not installed'),
        (dict(ORIGINAL, mmcv='2.2.0'), 'mmdet 3.3.0 refuses mmcv 2.2.0'),
        (dict(ORIGINAL, torch='2.4.1'), 'torch 2.4.1 is too old'),
        (dict(ORIGINAL, numpy='1.24.4'), 'numpy 1.24.4 is too old'),
        (dict(ORIGINAL, mmcv='1.7.2'), 'mmcv 1.7.2 is too old'),
        (dict(ORIGINAL, mmengine='0.7.0'), 'mmengine 0.7.0 is too old'),
        (dict(ORIGINAL, mmdet='2.28.0'), 'mmdet 2.28.0 is too old'),
        (dict(ORIGINAL, mmpretrain='0.25.0'), 'mmpretrain 0.25.0 is too old'),
    ],
)
def test_combinations_that_do_not(versions, words):
    assert words in conflict(versions)


def test_import_says_so_in_one_message(run):
    script = (
        'import importlib.metadata as m; version = m.version\n'
        'm.version = lambda name: "2.0.0rc4" if name in ("onedl-mmcv", "mmcv") else version(name)\n'
        'import se_mm'
    )
    code, output = run(sys.executable, '-c', script)
    last = output.strip().splitlines()[-1]
    assert code == 1 and last.startswith('ImportError: se_mm cannot run here: mmcv 2.0.0rc4 is too old')
    assert 'pip install "se_mm[onedl]"' in last

import sys

import mmcv.ops  # noqa: F401
import pytest
from mmcv import _ext

from se_mm import mmcv_ext


def use(extension, monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', extension)


@pytest.fixture
def stand_in(monkeypatch):
    """mmcv.ops with the stand-in, whatever this mmcv has."""
    use(mmcv_ext, monkeypatch)


@pytest.fixture
def both(monkeypatch):
    """A function's results with mmcv's compiled operators and with the stand-in."""
    if _ext is mmcv_ext:
        pytest.skip('mmcv has no compiled operators to compare with')

    def run(function):
        results = []
        for extension in (_ext, mmcv_ext):
            with monkeypatch.context() as patch:
                use(extension, patch)
                results.append(function())
        return results

    return run

"""se_mm.ops where OpenMMLab, or a part of it, is missing."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import se_mm

START = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib.util import find_spec
"""
ARITHMETIC = """
import torch
from torch import nn
from se_mm.ops import choose, se_tail

torch.manual_seed(0)
norm, gate = nn.BatchNorm2d(8).double(), nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()).double()
x, identity, grad = torch.randn(3, 2, 8, 5, 5, dtype=torch.float64)
leaves = [x.requires_grad_(), identity.requires_grad_(), *norm.parameters(), *gate.parameters()]
for training in (True, False):
    norm.train(training)
    outs = (se_tail(x, identity, norm, gate, backend) for backend in ('plain', None, 'torch'))
    plain, default, fused = (torch.autograd.grad(out, leaves, grad) for out in outs)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(default, plain)
    with torch.no_grad():
        torch.testing.assert_close(se_tail(x, identity, norm, gate), se_tail(x, identity, norm, gate, 'torch'))
print(choose(x, identity, norm).backend)
"""


def link_packages(folder, *names):
    """Link the named distributions, and what they require, into a folder, and se_mm without its requirements."""
    done, todo = set(), list(names)
    while todo:
        name = re.sub('[-_.]+', '-', todo.pop()).lower()
        if name in done:
            continue
        done.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:  # another one stands in, like opencv-python-headless for opencv-python
            continue
        site = Path(package.locate_file(''))
        for top in {file.parts[0] for file in package.files} - {'..', '__pycache__'}:
            if not (folder / top).exists():
                (folder / top).symlink_to(site / top)
        requirements = map(Requirement, package.requires or ())
        todo += [r.name for r in requirements if r.marker is None or r.marker.evaluate(dict(extra=''))]
    (folder / 'se_mm').symlink_to(Path(se_mm.__file__).parent)


@pytest.fixture
def python(run, tmp_path):
    """Run code in an environment that has nothing but the packages in a folder."""

    def run_code(code):
        return run(sys.executable, '-I', '-S', '-W', 'ignore', '-c', START + code, tmp_path / 'packages')

    (tmp_path / 'packages').mkdir()
    return run_code


def test_runs_with_torch_alone(python, tmp_path):
    link_packages(tmp_path / 'packages', 'torch')
    code, output = python('assert not find_spec("mmengine")' + ARITHMETIC)
    assert code == 0, output
    assert output.splitlines()[-1] == 'plain'


@pytest.mark.slow
def test_runs_without_mmcv_which_networks_ask_for(python, tmp_path):
    (mmengine,) = packages_distributions()['mmengine']
    link_packages(tmp_path / 'packages', 'torch', mmengine)
    code, output = python('assert find_spec("mmengine") and not find_spec("mmcv")' + ARITHMETIC)
    assert code == 0, output
    code, output = python("""
from mmengine.registry import MODELS
MODELS.build(dict(type='se_mm.SEResNet', depth=18))
""")
    assert code == 1
    assert 'ImportError: se_mm cannot run here: mmcv not installed. Install one that works' in output.splitlines()[-1]

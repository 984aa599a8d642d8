"""The pages of docs/ run as written: their blocks marked bash, one after the other, in a folder with this project's
tools and configs. Those marked sh need GPUs, downloads or Slurm."""

import json
import re

import pytest
import torch
from conftest import ROOT, TOOLS


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


def test_coco_data(run_page, tmp_path):
    run_page('coco_data')
    metrics = json.loads((tmp_path / 'work_dirs' / 'mine' / 'metrics.json').read_text())['metrics']
    assert set(metrics['bbox_per_class']) == {'circle', 'square', 'triangle'}


def test_pretrain(run_page, tmp_path):
    output = run_page('pretrain')
    assert 'Epoch(val) [1]' in output.partition('detect.py')[2]
    first, then = (
        torch.load(path, weights_only=False)['state_dict']
        for path in (next((tmp_path / 'pretrained').iterdir()), tmp_path / 'work_dirs' / 'detect' / 'epoch_1.pth')
    )
    kept = [key for key in then if key.startswith(('backbone.conv1.', 'backbone.layer1.'))]
    assert any('se_layer' in key for key in kept)
    assert all(torch.equal(first[key], then[key]) for key in kept)  # frozen
    assert not torch.equal(first['backbone.layer2.0.conv1.weight'], then['backbone.layer2.0.conv1.weight'])


def test_two_machines(run_page):
    assert 'all weights equal: True' in run_page('two_machines')

"""The weights that come with the package: by name, offline, as a backbone's and as a classifier's."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

from conftest import CONFIGS, ROOT
from se_mm.models import SEResNetCIFAR
from se_mm.utils import sha256
from se_mm.utils.config import build_model, load_config, use_scope
from se_mm.weights import fetch, read_checkpoint

FOLDER = Path(ROOT, 'se_mm', 'weights', 'released')
NAMES = ('r20_cifar10', 'se_r20_cifar10')


@pytest.mark.parametrize('name', NAMES)
def test_backbone_and_classifier(name):
    torch.manual_seed(0)
    options = dict(with_se=False) if name == 'r20_cifar10' else dict(se_ratio=4)
    backbone = SEResNetCIFAR(
        'resnet20', **options, init_cfg=dict(type='Pretrained', checkpoint=f'se_mm://{name}', prefix='backbone.')
    )
    backbone.init_weights()
    state = CheckpointLoader.load_checkpoint(f'se_mm://{name}')['state_dict']
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[f'backbone.{key}'])
    cfg = load_config(CONFIGS / 'studies' / f'{name}.py')
    use_scope(cfg)
    build_model(cfg).load_state_dict({key: value for key, value in state.items() if 'data_preprocessor' not in key})


@pytest.mark.parametrize('name', NAMES)
def test_card(name):
    """The name of the file is true, and the card has the error of the stored result."""
    path = fetch(f'se_mm://{name}')
    assert path.parent == FOLDER and path.stem == f'{name}-{sha256(path)[:8]}'
    meta = read_checkpoint(path)['meta']
    assert len(meta['dataset_meta']['classes']) == 10 and meta['seed'] == 0
    result = json.loads((ROOT / 'docs' / 'evidence' / 'cifar10' / f'{name}_seed0.json').read_text())
    card = (FOLDER / 'README.md').read_text()
    (error,) = re.findall(rf'`se_mm://{name}` .*\| ([\d.]+) % \|', card)
    assert float(error) == pytest.approx(result['metrics']['error/top1'], abs=0.005)
    assert all(klass in card for klass in meta['dataset_meta']['classes'])

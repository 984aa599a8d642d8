"""Images for the analysis of gates and for pruning."""

import json
import shutil
from dataclasses import replace

import cv2
import pytest
import torch

from conftest import CONFIGS
from se_mm.engine.excitation import gate_data
from se_mm.engine.pruning import add_gradients, mean_gates
from se_mm.utils import InputError
from se_mm.utils.config import build_model, load_config, use_scope

DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'


@pytest.fixture
def detector(shapes, tmp_path):
    """A config for images of two shapes, and the model."""
    folder = shutil.copytree(shapes, tmp_path / 'shapes')
    path = folder / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    for entry in content['images'][::2]:
        name = str(folder / 'val' / entry['file_name'])
        cv2.imwrite(name, cv2.imread(name)[:, :80])
        entry.update(width=80)
    path.write_text(json.dumps(content))
    use_scope(cfg := load_config(DETECTOR, dict(data_root=f'{folder}/')))
    cfg.test_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.model.backbone.zero_init_residual = False  # or all gates would be those of an empty map
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    return cfg, model.eval()


def test_gates_of_an_image_do_not_depend_on_others(detector):
    cfg, model = detector
    data, singles = gate_data(cfg, split='val'), []
    assert len(data.places) == 8 and data.number_of_batches() == 8 and data.number_of_batches(3) == 3
    for place in data.places:
        singles.append(mean_gates(model, replace(data, places=[place])))
    for path, mean in mean_gates(model, data).items():
        torch.testing.assert_close(mean, torch.stack([found[path] for found in singles]).mean(0))


def test_gradients_that_are_not_finite(detector):
    cfg, model = detector
    add_gradients(model, cfg, images=2, seed=0)
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
    model.backbone.layer1[0].conv1.weight.data[0] = torch.inf
    with pytest.raises(InputError, match='^the gradient of .* is not finite: look for NaN'):
        add_gradients(model, cfg, images=2, seed=0)

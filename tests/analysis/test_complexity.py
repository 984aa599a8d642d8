import pytest
from conftest import CONFIGS

from se_mm.analysis import complexity
from se_mm.analysis import test_shape as shape_of
from se_mm.engine import load_config


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_papers_gflops(depth):
    """Table 2 counts the network with the stride in the first 1x1 of a bottleneck."""
    paper = {50: (3.86, 3.87), 101: (7.58, 7.60), 152: (11.30, 11.32)}[depth]
    for name, expected in zip((f'r{depth}_imagenet', f'se_r{depth}_imagenet'), paper):
        cfg = load_config(CONFIGS / f'{name}.py', {'model.backbone.style': 'caffe'})
        assert complexity(cfg)['gflops'] == pytest.approx(expected, rel=0.005)


def test_shapes_of_test_images():
    assert shape_of(load_config(CONFIGS / 'se_r50_imagenet.py')) == (224, 224)
    assert shape_of(load_config(CONFIGS / 'faster_rcnn_se_r50_coco.py')) == (800, 1333)
    assert shape_of(load_config(CONFIGS / 'quickstart' / 'r18_scenes.py')) == (96, 96)


def test_detector_is_counted_with_all_proposals():
    """The box head's share: 100 proposals of 7x7x64 through two layers of 256 and the outputs."""
    cfg = load_config(CONFIGS / 'quickstart' / 'faster_rcnn_r18_shapes.py')
    cfg.model.test_cfg.rpn.max_per_img = 50
    half = complexity(cfg)['gflops']
    cfg.model.test_cfg.rpn.max_per_img = 100
    whole = complexity(cfg)['gflops']
    assert whole - half == pytest.approx(50 * (7 * 7 * 64 * 256 + 256 * 256 + 256 * (4 + 12)) / 1e9)

"""Exported files run by other runtimes, as a user makes them."""

import json
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from packaging.version import Version

from conftest import CONFIGS, TOOLS
from se_mm.models import SELayer

DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'
SOFT_NMS = "_base_ = '{}'\nmodel = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))"
pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version('2.6'), reason='torch 2.5 cannot export batch norms this way'
)


def export(*arguments):
    return [sys.executable, TOOLS / 'export_onnx.py', *arguments]


def build(config):
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('options', [[], ['--dynamic']], ids=['fixed', 'dynamic'])
def test_classifier(run, tmp_path, options):
    model = build(CLASSIFIER)
    state = {f'module.{name}': tensor for name, tensor in model.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=['a', 'b']))), tmp_path / 'a.pth')
    code, output = run(*export(CLASSIFIER, 'a.pth', 'a.onnx', '--size', '96', '64', *options))
    assert code == 0, output
    assert '1x3x96x64' in output and ('3x3x129x64' in output) == bool(options)
    images = normal(2 if options else 1, 3, 96, 96 if options else 64)
    (scores,) = onnxruntime.InferenceSession(tmp_path / 'a.onnx').run(['scores'], dict(images=images.numpy()))
    with torch.no_grad():
        np.testing.assert_allclose(scores, model(images).numpy(), atol=1e-5)

    content = onnx.load(tmp_path / 'a.onnx')
    known = {entry.key: entry.value for entry in content.metadata_props}
    assert known['channels'] == 'RGB' and json.loads(known['mean']) == [123.675, 116.28, 103.53]
    assert json.loads(known['classes']) == ['a', 'b'] and json.loads(known['pipeline'])[0]['type'] == 'ResizeEdge'
    gates = [node.op_type for node in content.graph.node if 'se_layer' in node.name]
    layers = sum(isinstance(module, SELayer) for module in model.modules())
    assert layers == 8 and gates.count('Conv') == 2 * layers and gates.count('Sigmoid') == layers
    assert gates.count('GlobalAveragePool') == layers
    assert not {'Gemm', 'MatMul', 'Reshape', 'Unsqueeze', 'ReduceMean'} & set(gates)
    onnx.checker.check_model(content, full_check=True)
    used = {name for node in content.graph.node for name in node.input}
    assert {tensor.name for tensor in content.graph.initializer} <= used
    assert str(TOOLS.parent).encode() not in (tmp_path / 'a.onnx').read_bytes()


def test_backbone_of_a_detector(run, tmp_path):
    model = build(DETECTOR)
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    code, output = run(*export(DETECTOR, 'a.pth', 'a.onnx', '--backbone', '--dynamic'))
    assert code == 0, output
    images = normal(2, 3, 65, 129)
    session = onnxruntime.InferenceSession(tmp_path / 'a.onnx')
    outputs = session.run([f'stage{i}' for i in (1, 2, 3, 4)], dict(images=images.numpy()))
    with torch.no_grad():
        for actual, expected in zip(outputs, model.backbone(images), strict=True):
            np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5 * expected.abs().max().item())


def test_detector(run, shapes, tmp_path):
    from mmdet.apis import inference_detector

    model = build(DETECTOR)
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), tmp_path / 'a.pth')
    photo = shapes / 'val' / sorted(path.name for path in (shapes / 'val').iterdir())[0]
    checks = ['--images', photo, '--runtimes', 'onnxruntime', 'openvino']
    code, output = run(*export(DETECTOR, 'a.pth', 'a.onnx', '--dynamic', '--size', '128', '128', *checks))
    assert code == 0 and output.count(photo.name[:8]) == 2, output
    session = onnxruntime.InferenceSession(tmp_path / 'a.onnx')
    known = session.get_modelmeta().custom_metadata_map
    mean, std = (np.array(json.loads(known[key]), np.float32) for key in ('mean', 'std'))
    assert json.loads(known['classes']) == ['circle', 'square', 'triangle'] and known['channels'] == 'RGB'
    assert json.loads(known['test_cfg'])['rcnn']['score_thr'] == 0.05

    model.cfg = Config.fromfile(DETECTOR)
    image = cv2.resize(cv2.imread(str(photo)), (128, 90))  # the longer edge as the config has it
    expected = inference_detector(model, image).pred_instances
    normalised = ((image[:, :, ::-1] - mean) / std).transpose(2, 0, 1)[None]
    boxes, scores, labels = session.run(None, dict(images=normalised))
    assert len(scores) == len(expected.scores) == 100
    np.testing.assert_allclose(scores, expected.scores.numpy(), atol=1e-4)
    overlap = np.abs(boxes[:, None] - expected.bboxes.numpy()).max(2).min(1)
    assert overlap.max() < 0.01 and sorted(labels) == sorted(expected.labels.tolist())

    boxes, scores, labels = session.run(None, dict(images=np.zeros((1, 3, 8, 200), np.float32)))
    assert boxes.shape == (len(scores), 4) and boxes[:, 3].max() <= 8

    command = sys.executable, TOOLS / 'quantize_onnx.py', DETECTOR, 'a.onnx', 'int8.onnx', '--images'
    code, output = run(*command, shapes / 'val')
    assert code == 0 and 'gates: 0 of 16' in output and 'others: 47 of 47' in output, output
    close = onnxruntime.InferenceSession(tmp_path / 'int8.onnx').run(None, dict(images=normalised))
    assert len(close[1]) == 100 and abs(close[1][0] - expected.scores[0]) < 0.1
    code, output = run(*command[:4], 'again.onnx', '--images', tmp_path / 'nothing')
    assert code == 1 and output.splitlines()[-1].startswith('error: 1 of 1 images')
    code, output = run(*command[:3], 'int8.onnx', 'twice.onnx', '--images', shapes / 'val')
    assert code == 1 and output.splitlines()[-1].startswith('error: int8.onnx is in int8 already')


def test_fixed_sizes(run, scenes, tmp_path):
    """A file for one size, and a network that takes one size."""
    torch.save(build(CLASSIFIER).state_dict(), tmp_path / 'a.pth')
    code, output = run(*export(CLASSIFIER, 'a.pth', 'a.onnx', '--size', '40', '40'))
    assert code == 0, output
    tool = TOOLS / 'quantize_onnx.py'
    code, output = run(sys.executable, tool, CLASSIFIER, 'a.onnx', 'int8.onnx', '--images', scenes / 'val_256')
    last = output.splitlines()[-1]
    assert code == 1 and 'does not fit into a.onnx, 1x3x40x40 and 1x3x' in last and 'Traceback' not in output
    config = CONFIGS / 'variations' / 'cnn_cifar10.py'
    torch.save(build(config).state_dict(), tmp_path / 'cnn.pth')
    code, output = run(*export(config, 'cnn.pth', 'cnn.onnx', '--size', '32', '32', '--dynamic'))
    assert code == 1 and 'error: ImageClassifier cannot take images of 2x3x288x288' in output


def test_gates_of_other_projects_stay_in_float(run, scenes, tmp_path):
    (tmp_path / 'mobile.py').write_text(
        f"_base_ = '{CLASSIFIER}'\n"
        'model = dict(\n'
        "    backbone=dict(_delete_=True, type='MobileNetV3', arch='small'),\n"
        '    head=dict(in_channels=576),\n'
        ')\n'
    )
    model = build(tmp_path / 'mobile.py')
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    code, output = run(*export('mobile.py', 'a.pth', 'a.onnx', '--size', '96', '96'))
    assert code == 0, output
    quantize = sys.executable, TOOLS / 'quantize_onnx.py', 'mobile.py', 'a.onnx'
    code, output = run(*quantize, 'int8.onnx', '--images', scenes / 'val_256')
    layers = sum(type(module).__name__ == 'SELayer' for module in model.modules())
    assert code == 0 and layers == 9 and 'gates: 0 of 18' in output, output
    for command in (quantize, export('mobile.py', 'a.pth')):
        code, output = run(*command, 'a.onnx', '--images', scenes / 'val_256')
        assert code == 1 and output.splitlines()[-1] == 'error: a.onnx is already there: give another name'


def test_errors(run, tmp_path):
    torch.save(build(DETECTOR).state_dict(), tmp_path / 'a.pth')
    for words, *arguments in (
        ('a detector is exported for one image', '--batch', '2'),
        ('--opset 99: the newest that onnx', '--opset', '99'),
        ('no.jpg (missing)', '--images', 'no.jpg'),
        ('a.onnx is not written: differences are larger than --tolerance 1e-12', '--backbone', '--tolerance', '1e-12'),
    ):
        code, output = run(*export(DETECTOR, 'a.pth', 'a.onnx', '--size', '64', '64', *arguments))
        assert code == 1 and words in output.strip().splitlines()[-1] and 'Traceback' not in output
    code, output = run(*export(DETECTOR, 'a.pth', 'a.pt'))
    assert code == 2 and 'a.pt: give a file with the suffix .onnx' in output
    (tmp_path / 'soft.py').write_text(
        f"_base_ = '{DETECTOR}'\nmodel = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))"
    )
    code, output = run(*export('soft.py', 'a.pth', 'a.onnx'))
    assert code == 1 and 'soft.py has no export: test_cfg has nms of type soft_nms' in output
    assert not list(tmp_path.glob('*.onnx*'))

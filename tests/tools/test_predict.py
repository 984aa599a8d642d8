"""Pictures and numbers of networks' answers, against mmdet's own functions and plain torch."""

import json
import sys

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.apis import inference_detector, init_detector

from conftest import CONFIGS, TOOLS
from se_mm.engine.inference import build_whole_model, predictor
from se_mm.utils import InputError
from se_mm.utils.config import build_model, load_config, use_scope

CLASSIFIER = CONFIGS / 'studies' / 'se_r20_cifar10.py'
DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
CLASSES = {CLASSIFIER: [f'kind{i}' for i in range(10)], DETECTOR: ['circle', 'square', 'triangle']}


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of a config with random weights, which know the names of the classes."""

    def write(config):
        cfg = load_config(config)
        use_scope(cfg)
        torch.manual_seed(0)
        model = build_model(cfg)
        model.init_weights()
        path = tmp_path / f'{config.stem}.pth'
        torch.save(dict(meta=dict(dataset_meta=dict(classes=CLASSES[config])), state_dict=model.state_dict()), path)
        return path, model.eval()

    return write


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / 'photo.png'
    cv2.imwrite(str(path), cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (160, 120)))
    return path


def test_classifier(run, weights, photo, tmp_path):
    checkpoint, model = weights(CLASSIFIER)
    small = tmp_path / 'small.png'  # of CIFAR-10's size, which the pipeline leaves as it is
    cv2.imwrite(str(small), cv2.resize(cv2.imread(str(photo)), (32, 32)))
    code, output = run(sys.executable, TOOLS / 'predict.py', CLASSIFIER, checkpoint, small, photo, '-o', 'new/out')
    assert code == 0 and 'small.png' in output, output
    pixels = torch.from_numpy(cv2.imread(str(small))[..., ::-1].copy()).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([125.307, 122.961, 113.8575], [51.5865, 50.847, 51.255]))
    with torch.no_grad():
        maps = model.backbone(((pixels - mean) / std)[None])[-1]
        scores = model.head.fc(maps.mean((2, 3))).softmax(1)[0]
    answers = json.loads((tmp_path / 'new' / 'out' / 'predictions.json').read_text())
    assert len(answers) == 2 and answers[0]['image'] == str(small)
    best = scores.argsort(descending=True)[:5]
    assert [entry['label'] for entry in answers[0]['classes']] == best.tolist()
    assert [entry['class'] for entry in answers[0]['classes']] == [f'kind{i}' for i in best]
    assert [entry['score'] for entry in answers[0]['classes']] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert cv2.imread(str(tmp_path / 'new' / 'out' / 'small.png')).shape == (256, 256, 3)
    assert cv2.imread(str(tmp_path / 'new' / 'out' / 'photo.png')).shape == (256, 341, 3)


def test_detector(weights, photo, tmp_path):
    checkpoint, _ = weights(DETECTOR)
    expected = inference_detector(
        init_detector(str(DETECTOR), str(checkpoint), device='cpu'), str(photo)
    ).pred_instances
    predict = predictor(load_config(DETECTOR), str(checkpoint), tmp_path / 'out', device='cpu', score=0.2)
    answer = predict(str(photo))
    wanted = expected[expected.scores >= 0.2]
    assert len(wanted) > 0
    assert torch.equal(torch.tensor([box['bbox'] for box in answer.content['boxes']]), wanted.bboxes)
    assert [box['score'] for box in answer.content['boxes']] == wanted.scores.tolist()
    assert [box['class'] for box in answer.content['boxes']] == [CLASSES[DETECTOR][i] for i in wanted.labels]
    drawn = cv2.imread(str(answer.picture))
    assert drawn.shape == (120, 160, 3) and (drawn != cv2.imread(str(photo))).any()


@pytest.mark.parametrize(
    'name, size, crop, steps',
    [
        ('cifar/se_r110_cifar10.py', 32, 32, ['Resize']),
        ('variations/se_r18_svhn.py', 256, 224, ['ResizeEdge', 'CenterCrop']),
    ],
)
def test_files_for_a_network_of_arrays(run, photo, tmp_path, name, size, crop, steps):
    """CIFAR's and SVHN's own data sets give RGB arrays of one size, and no files."""
    cv2.imwrite(str(photo), cv2.resize(cv2.imread(str(photo)), (size, size)))
    cfg = load_config(CONFIGS / name)
    assert not cfg.data_preprocessor.to_rgb
    assert not any('Load' in step.type for step in cfg.test_dataloader.dataset.pipeline)
    model = build_whole_model(cfg).eval()
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    answer = predictor(load_config(CONFIGS / name), str(tmp_path / 'a.pth'), tmp_path / 'out', device='cpu')(str(photo))
    start, end = (size - crop) // 2, (size + crop) // 2
    image = cv2.imread(str(photo))[start:end, start:end, ::-1].copy()
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    mean, std = (torch.tensor(cfg.data_preprocessor[key]).view(3, 1, 1) for key in ('mean', 'std'))
    with torch.no_grad():
        scores = model(((pixels - mean) / std)[None]).softmax(1)[0]
    found = {entry['label']: entry['score'] for entry in answer.content['classes']}
    assert found == pytest.approx({label: scores[label].item() for label in found}, rel=1e-4)

    sizes = ['--size', crop, crop, '--images', photo]
    code, output = run(sys.executable, TOOLS / 'export_onnx.py', CONFIGS / name, 'a.pth', 'a.onnx', *sizes)
    assert code == 0, output
    known = onnxruntime.InferenceSession(tmp_path / 'a.onnx').get_modelmeta().custom_metadata_map
    assert known['channels'] == 'RGB' and [step['type'] for step in json.loads(known['pipeline'])] == steps


def test_mistakes(run, weights, photo, tmp_path):
    checkpoint, _ = weights(CLASSIFIER)
    with pytest.raises(InputError, match='is for another architecture than the config'):
        predictor(load_config(DETECTOR), str(checkpoint), tmp_path)
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'photo2.heic').write_bytes(bytes(64))
    for images, message in (
        ([tmp_path / 'none.png'], 'none.png'),
        ([tmp_path / 'text.png'], 'text.png'),
        ([photo, tmp_path / 'photo2.heic'], 'photo2.heic is not of a kind that OpenCV can read'),
        ([photo, '-o', tmp_path], 'photo.png is an image, and its picture would replace it: give another --out-dir'),
        ([photo, tmp_path / 'other' / 'photo.png'], 'two pictures would be written to predictions/photo.png'),
    ):
        code, output = run(sys.executable, TOOLS / 'predict.py', CLASSIFIER, checkpoint, *images)
        assert code == 1 and message in output and 'Traceback' not in output and not (tmp_path / 'predictions').exists()
    for device in ('cuda:99', 'abacus'):
        code, output = run(sys.executable, TOOLS / 'predict.py', CLASSIFIER, checkpoint, photo, '--device', device)
        assert code == 1 and f'error: --device {device}: ' in output and 'Traceback' not in output


def test_dots_in_names(run, weights, photo, tmp_path):
    checkpoint, _ = weights(CLASSIFIER)
    images = [tmp_path / f'a.v{i}.x.png' for i in (1, 2)]
    for image in images:
        image.write_bytes(photo.read_bytes())
    code, output = run(sys.executable, TOOLS / 'predict.py', CLASSIFIER, checkpoint, *images)
    assert code == 0 and {p.name for p in (tmp_path / 'predictions').glob('*.png')} == {'a.v1.png', 'a.v2.png'}, output

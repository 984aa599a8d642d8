import json

import pytest
import torch
from mmdet.evaluation import CocoMetric
from pycocotools.coco import COCO

from se_mm.evaluation.coco import STATS, coco_stats


@pytest.fixture(scope='module')
def predictions(shapes):
    """Every object, moved by up to a fifth of its size, a third of them with another label."""
    generator = torch.Generator().manual_seed(0)
    rand = lambda: torch.rand(1, generator=generator).item()  # noqa: E731
    found = []
    for annotation in COCO(str(shapes / 'annotations' / 'val.json')).dataset['annotations']:
        x, y, w, h = annotation['bbox']
        box = [x + 0.2 * w * rand(), y + 0.2 * h * rand(), w, h]
        category = annotation['category_id'] % 3 + 1 if rand() < 0.3 else annotation['category_id']
        found.append(dict(image_id=annotation['image_id'], category_id=category, bbox=box, score=rand()))
    return found


def stats(shapes, folder, predictions, **kwargs):
    (folder / 'p.json').write_text(json.dumps(predictions))
    return coco_stats(str(shapes / 'annotations' / 'val.json'), str(folder / 'p.json'), **kwargs)


def test_equals_mmdets_metric(shapes, tmp_path, predictions):
    ours = stats(shapes, tmp_path, predictions, classwise=True)
    metric = CocoMetric(str(shapes / 'annotations' / 'val.json'), classwise=True)
    metric.dataset_meta = dict(classes=('circle', 'square', 'triangle'))
    images = json.loads((shapes / 'annotations' / 'val.json').read_text())['images']
    for image in images:
        mine = [p for p in predictions if p['image_id'] == image['id']]
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (p['bbox'] for p in mine)]).reshape(-1, 4)
        instances = dict(
            bboxes=boxes,
            scores=torch.tensor([p['score'] for p in mine]),
            labels=torch.tensor([p['category_id'] - 1 for p in mine]),
        )
        shape = (image['height'], image['width'])
        metric.process(None, [dict(pred_instances=instances, img_id=image['id'], ori_shape=shape)])
    theirs = metric.evaluate(len(images))
    for name, key in dict(AP='mAP', AP50='mAP_50', AP75='mAP_75', AP_S='mAP_s', AP_M='mAP_m').items():
        assert 0 < ours[name] < 1 and ours[name] == pytest.approx(theirs[f'coco/bbox_{key}'], abs=6e-4), name
    for name, value in ours['per_class'].items():
        assert value == pytest.approx(theirs[f'coco/{name}_precision'], abs=6e-4)


def test_perfect_and_absent_predictions(shapes, tmp_path):
    truth = COCO(str(shapes / 'annotations' / 'val.json')).dataset['annotations']
    perfect = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=1.0) for a in truth]
    found = stats(shapes, tmp_path, perfect)
    assert list(found) == list(STATS) and found['AP'] == found['AR100'] == pytest.approx(1)
    assert found['AR1'] < 1 and found['AP_L'] is None  # several objects an image, none of them large
    assert stats(shapes, tmp_path, [])['AP'] == 0


def test_only_the_given_categories(shapes, tmp_path, predictions):
    found = stats(shapes, tmp_path, predictions, category_ids=[2], classwise=True)
    assert list(found['per_class']) == ['square'] and found['AP'] == pytest.approx(found['per_class']['square'])

import pytest
import torch
from mmpretrain.evaluation import Accuracy

from se_mm.evaluation import TopKError


def samples(count, classes):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(count, classes, generator=generator).softmax(1)
    labels = torch.randint(classes, (count,), generator=generator)
    return [dict(pred_score=s, gt_label=label.view(1)) for s, label in zip(scores, labels)]


def test_is_the_complement_of_mmpretrains_accuracy():
    data = samples(200, 12)
    error, accuracy = TopKError(prefix='scene_error'), Accuracy(topk=(1, 5))
    for metric in (error, accuracy):
        metric.process(None, data[:150])
        metric.process(None, data[150:])
    errors, accuracies = error.evaluate(200), accuracy.evaluate(200)
    for k in (1, 5):
        assert 0 < errors[f'scene_error/top{k}'] < 100
        assert errors[f'scene_error/top{k}'] == pytest.approx(100 - accuracies[f'accuracy/top{k}'])


def test_fewer_categories_than_k():
    error = TopKError()
    error.process(None, samples(20, 3))
    assert error.evaluate(20)['error/top5'] == 0

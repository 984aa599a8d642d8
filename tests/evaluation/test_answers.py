import json

import torch

from se_mm.evaluation import AnswerFile


def sample(index, scores, label):
    return dict(sample_idx=index, pred_score=torch.tensor(scores), gt_label=torch.tensor(label))


def test_best_categories_of_each_image(tmp_path):
    metric = AnswerFile(path=str(tmp_path / 'new' / 'answers.json'))
    few, many = [0.1, 0.7, 0.2], [0.0, 0.3, 0.05, 0.25, 0.2, 0.15, 0.05]
    metric.process(None, [sample(0, few, [1]), sample(1, many, [6])])
    metric.process(None, [sample(2, few, [0, 2]), dict(sample_idx=3)])  # several labels; no scores
    assert metric.evaluate(2) == {}
    first, second = json.loads((tmp_path / 'new' / 'answers.json').read_text())
    assert first == dict(index=0, truth=1, answers=[1, 2, 0], scores=[0.7, 0.2, 0.1])
    assert second['answers'][:4] == [1, 3, 4, 5] and len(second['scores']) == 5 and second['truth'] == 6


def test_nothing_to_write(tmp_path):
    metric = AnswerFile(path=str(tmp_path / 'answers.json'))
    assert metric.evaluate(1) == {} and not list(tmp_path.iterdir())

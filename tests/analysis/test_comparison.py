import math

import pytest
from scipy.stats import t

from se_mm.analysis.comparison import difference, differences, measured_values, signed, spread
from se_mm.utils import InputError


def evaluation(metrics, checkpoint='a', images=8):
    return dict(
        config='a.py', metrics=metrics, dataset=dict(images=images), checkpoint=dict(path=checkpoint, sha256=checkpoint)
    )


def test_values_in_percent():
    boxes = dict(bbox_AP=0.25, bbox_AP_L=None, bbox_AR1=0.5, bbox_per_class=dict(a=0.5), segm_AP=0.1)
    assert measured_values([evaluation(boxes)]) == dict(AP=[25.0], AR1=[50.0])
    errors = [evaluation({'scene_error/top1': 4.0}), evaluation({'accuracy/top1': 97.0, 'loss': 1.0}, 'b')]
    assert measured_values(errors) == dict(top1=[4.0, 3.0])
    assert measured_values([]) == {}


def test_runs_that_do_not_belong_together():
    with pytest.raises(InputError, match='a and a are one checkpoint: a run counts once'):
        measured_values([evaluation({}), evaluation({}, 'b'), evaluation({})])
    with pytest.raises(InputError, match='different data, 8 and 9 images'):
        measured_values([evaluation({}), evaluation({}, 'b', images=9)])
    unknown = [evaluation({'error/top1': 1.0}, None) for _ in range(2)]  # evaluated where the checkpoint was not
    assert measured_values(unknown) == dict(top1=[1.0, 1.0])


def test_spread():
    assert spread([2.0, 4.0]) == (3.0, math.sqrt(2))
    assert str(spread([2.0, 4.0])) == '3.0 ± 1.4' and str(spread([2.0])) == '2.0'


@pytest.mark.parametrize(
    ('value', 'text'), [(0.2, '+0.2'), (-0.06, '-0.1'), (-0.04, '0.0'), (0.04, '0.0'), (0.0, '0.0')]
)
def test_signs(value, text):
    assert signed(value, 1) == text


def test_interval_of_welch():
    """By the formulas of the test."""
    a, b = [88.0, 90.0, 92.5, 91.0], [80.0, 84.0, 79.0]
    found = difference('AP', a, b)
    parts = [spread(values).deviation ** 2 / len(values) for values in (a, b)]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b)))
    half = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    middle = spread(a).mean - spread(b).mean
    assert found[:3] == pytest.approx((middle, middle - half, middle + half))
    assert found.verdict == 'better' and found.interval == f'{middle - half:+.1f} to {middle + half:+.1f}'


@pytest.mark.parametrize(
    'name, values, verdict',
    [
        ('AP', [1.0, 1.1], 'worse'),
        ('top1', [1.0, 1.1], 'better'),
        ('AP', [9.0, 9.1], 'better'),
        ('top5', [9.0, 9.1], 'worse'),
        ('AP', [4.0, 5.8], 'inside the noise'),
        ('AP', [9.0], ''),
    ],
)
def test_verdicts(name, values, verdict):
    assert difference(name, values, [5.0, 5.1]).verdict == verdict


def test_unknown_noise():
    assert difference('AP', [9.0], [5.0]) == (4.0, None, None, '')
    assert difference('top5', [0.0, 0.0], [0.0, 0.0]) == (0.0, None, None, '')  # no spread at all
    assert difference('AP', [9.0], [5.0]).interval == ''


def test_differences_of_common_metrics():
    found = differences(dict(AP=[2.0], AP50=[3.0]), dict(AP=[1.5], AP75=[1.0]))
    assert {name: d.value for name, d in found.items()} == dict(AP=0.5)


def test_a_run_counts_once_with_several_evaluators():
    runs = [{'config': 'a.py', 'metrics': {'scene_error/top1': 20.0, 'accuracy/top1': 80.0, 'accuracy/top5': 95.0}}]
    assert measured_values(runs * 2) == {'top1': [20.0, 20.0], 'top5': [5.0, 5.0]}


def test_numbers_of_mmdets_own_evaluation():
    metrics = {'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_50': 0.6, 'coco/bbox_mAP_s': -1.0, 'coco/segm_mAP': 0.3}
    assert measured_values([{'config': 'a.py', 'metrics': metrics}]) == {'AP': [40.0], 'AP50': [60.0]}


def test_losses_that_are_not_finite():
    for values in ([math.nan, 1.0], [math.inf, 1.0], [math.nan]):
        mean, deviation = spread(values)
        assert not math.isfinite(mean) and deviation is None

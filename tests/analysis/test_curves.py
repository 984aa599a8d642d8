import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from se_mm.analysis.curves import COLOURS, draw_curves, learning_curves, mean_curve
from se_mm.analysis.runs import Axis, Run

LOSS, AP = Axis('training loss', 'epoch'), Axis('AP, %', 'epoch')


def test_mean_and_deviation_where_all_runs_have_values():
    assert mean_curve([{1: 2.0, 2: 4.0}]) == ([1, 2], [2.0, 4.0], [0.0, 0.0])
    positions, means, deviations = mean_curve([{2: 4.0, 1: 2.0, 3: 9.0}, {1: 4.0, 2: 4.0}])
    assert (positions, means) == ([1, 2], [3.0, 4.0]) and deviations == pytest.approx([2**0.5, 0.0])
    shifted = mean_curve([{1: 2.0, 2: 4.0, 3: 6.0}, {1: 2.0, 2.5: 7.0, 3.01: 9.0, 4: 9.0}])  # after an interruption
    assert shifted.positions == [1, 2, 3] and shifted.means == pytest.approx([2, (4 + 16 / 3) / 2, 7.4804], abs=1e-4)


def run_of(*losses, ap=None):
    training = {i: dict(iter=i, epoch=i, loss=loss) for i, loss in enumerate(losses, 1)}
    validations = {} if ap is None else {len(losses): {'coco/bbox_mAP': ap}}
    return Run(Path('work'), 'a', Path('a.py'), None, training, validations)


def test_networks_share_axes():
    curves = learning_curves(dict(a=[run_of(3.0, 2.0, ap=0.5), run_of(1.0, 1.0)], b=[run_of(5.0)], c=[run_of()]))
    assert list(curves) == [LOSS, AP]
    assert {name: curve.means for name, curve in curves[LOSS].items()} == dict(a=[2.0, 1.5], b=[5.0])
    assert {name: curve.means for name, curve in curves[AP].items()} == dict(a=[50.0])


def test_picture():
    curves = learning_curves(dict(a=[run_of(3.0, 2.0), run_of(1.0, 1.0)], b=[run_of(5.0)]))[LOSS]
    picture = draw_curves(LOSS, curves, dict(a=0, b=1))
    ElementTree.fromstring(picture)
    assert picture == draw_curves(LOSS, curves, dict(a=0, b=1))  # and changes with what it shows
    assert picture != draw_curves(LOSS, curves | dict(b=mean_curve([{1: 4.0}])), dict(a=0, b=1))
    assert {colour for colour in COLOURS[:6] if re.search(f'(?i)stroke: {colour}', picture)} == set(COLOURS[:2])
    assert re.search(f'(?i)fill: {COLOURS[0]}; fill-opacity', picture)  # the band of the runs

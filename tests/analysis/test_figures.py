from dataclasses import replace

import pytest

from se_mm.analysis import Cost, Quantiles, draw_details, draw_overview, save_figure
from se_mm.utils import InputError


def cost(variant, step, stored=None, **setting):
    setting = dict(part='variants', mode='train', batch=8, height=224, width=224, depth=50) | setting
    return Cost(
        variant=variant, step_ratio=Quantiles(step - 0.01, step, step + 0.02), stored_ratio=stored, dtype='float32',
        layout='contiguous', device='some CPU', threads=2, allocator='default', versions='', **setting,
    )  # fmt: skip


COSTS = [
    cost('plain', 1.0, 1.0),
    cost('fused', 1.03, 1.0036),
    cost('unfused', 1.08, 1.26),
    cost('mmpretrain plain', 0.99, 1.0),
    cost('mmpretrain SE', 1.08, 1.26),
    cost('timm SE', 1.11, 1.26),
    cost('fused', 1.1, mode='inference', batch=1),
    cost('timm SE', 1.09, mode='inference', batch=1),
]
GROWTH = [
    cost(variant, 1.05, 1.2, part='growth', **point)
    for variant in ('plain', 'fused', 'unfused')
    for point in (dict(batch=1), dict(batch=8), dict(batch=1, height=800, width=1333), dict(depth=18))
]


def texts(figure):
    return [text.get_text() for axis in figure.axes if axis.get_visible() for text in axis.texts]


def labels(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_overview_says_what_training_costs(tmp_path):
    figure = draw_overview(COSTS)
    assert figure.get_suptitle() == (
        'Training with SE in se_mm: +0.4 % stored activations, +3 % time\n'
        'Training with SE elsewhere: +26 % stored activations, +8 % to +11 % time'
    )
    assert labels(figure) == ['SE in se_mm', 'SE in mmpretrain', 'SE in timm'] * 2 + ['SE in se_mm', 'SE in timm']
    assert [text.strip() for text in texts(figure) if '%' in text][3:] == ['+3 %', '+8 %', '+11 %', '+10 %', '+9 %']
    assert 'some CPU, 2 threads' in figure.get_supxlabel()
    save_figure(figure, tmp_path / 'overview.png')
    assert (tmp_path / 'overview.png').read_bytes().startswith(b'\x89PNG')


def test_overview_of_the_target_alone():
    figure = draw_overview([replace(c, part='target') for c in COSTS if c.variant in ('plain', 'fused')])
    assert figure.get_suptitle() == 'Training with SE in se_mm: +0.4 % stored activations, +3 % time'


def test_remarked_and_compiled_costs_are_left_out():
    remarked = [replace(c, compiled=True, remark='not comparable') for c in COSTS]
    assert draw_overview(remarked) is None and draw_details(remarked) is None
    compiled = [replace(c, compiled=True, step_ratio=Quantiles(2, 2, 2)) for c in COSTS]
    assert texts(draw_overview(COSTS + compiled)) == texts(draw_overview(COSTS))
    assert '2.00' in texts(draw_details(COSTS + compiled)) and '2.00' not in texts(draw_details(COSTS + remarked))


def test_details(tmp_path):
    detector = cost('fused', 1.02, 1.0, part='detector', batch=1, height=800, width=1333)
    figure = draw_details([*COSTS, detector, *GROWTH])
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert titles[:3] == ['stored activations', 'time of a training step', 'time of inference']
    assert 'Faster R-CNN:\ntime of a training step' in titles
    assert titles[-6:-3] == ['ResNet-50, images of 224²', 'ResNet-50, one image', '8 images of 224²']
    ticks = [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes[-3:]]
    assert ticks == [['1', '8'], ['224²', '800x1333'], ['50', '18']]
    save_figure(figure, tmp_path / 'details.png')
    assert draw_details(GROWTH) is not None and draw_overview(GROWTH) is None


def test_matplotlib_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib.figure', None)
    with pytest.raises(InputError, match='pip install matplotlib'):
        draw_overview(COSTS)

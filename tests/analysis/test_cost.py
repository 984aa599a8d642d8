import weakref

import torch
from torch import nn

from se_mm.analysis import interleave, kept_bytes, quantiles


def test_kept_bytes_are_counted_once_and_freed():
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    x, seen = torch.rand(2, 3, 5, 5), []

    def forward():
        out = model(x)
        seen.append(weakref.ref(out))

    # the image, the convolution's result with batch norm's mean and deviation, and ReLU's result; no weights
    expected = 4 * (2 * 3 * 25 + 2 * 8 * 25 + 2 * 8 + 2 * 8 * 25)
    assert kept_bytes(model, forward) == kept_bytes(model, forward) == expected
    assert all(ref() is None for ref in seen)


def test_variants_run_in_turn():
    order = []
    steps = {name: lambda name=name: order.append(name) or dict(step=len(order)) for name in 'abc'}
    rounds = interleave(steps, repeats=4, warmup=2, progress=lambda: None)
    assert all(sorted(order[i : i + 3]) == ['a', 'b', 'c'] for i in range(0, 18, 3))
    assert len({tuple(order[i : i + 3]) for i in range(0, 18, 3)}) > 1
    assert all(len(rounds[name]) == 4 for name in 'abc') and min(r['step'] for r in rounds['a']) > 6


def test_quantiles():
    assert quantiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == (2.0, 3.5, 5.0)

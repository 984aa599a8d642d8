import weakref

import torch
from torch import nn

from se_mm.analysis import Measurement, compare, interleave, quantiles, stored_bytes


def test_stored_bytes_are_counted_once_and_freed():
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    x, seen = torch.rand(2, 3, 5, 5), []

    def forward():
        out = model(x)
        seen.append(weakref.ref(out))

    # the image, the convolution's result with batch norm's mean and deviation, and ReLU's result; no weights
    expected = 4 * (2 * 3 * 25 + 2 * 8 * 25 + 2 * 8 + 2 * 8 * 25)
    assert stored_bytes(model, forward) == stored_bytes(model, forward) == expected
    assert all(ref() is None for ref in seen)


def test_networks_run_in_turn():
    order = []
    steps = {name: lambda name=name: order.append(name) or dict(step=len(order)) for name in 'abc'}
    rounds = interleave(steps, repeats=4, warmup=2)
    assert all(sorted(order[i : i + 3]) == ['a', 'b', 'c'] for i in range(0, 18, 3))
    assert len({tuple(order[i : i + 3]) for i in range(0, 18, 3)}) > 1
    assert all(len(rounds[name]) == 4 for name in 'abc') and min(r['step'] for r in rounds['a']) > 6


def test_quantiles():
    assert quantiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == (2.0, 3.5, 5.0)
    assert quantiles([1.0, 1.26]).p50 == 1.13 and quantiles([1.0, 1.26], digits=1).p50 == 1.1


def test_networks_are_divided_by_the_first():
    torch.manual_seed(0)
    x = torch.rand(4, 8)
    linear = dict(plain=nn.Linear(8, 8), wide=nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 24)))
    weights = linear['wide'][1].weight.detach().clone()

    def costs():
        forwards = {name: lambda model=model: model(x).square().mean() for name, model in linear.items()}
        steps = {name: Measurement(model, forwards[name], x.device) for name, model in linear.items()}
        return compare(steps, repeats=3, warmup=1)

    train = costs()
    # the squares' input, and in the second network the first layer's output; x is stored by both
    assert train['plain']['stored_bytes'] == 4 * (32 + 32) and train['wide']['stored_bytes'] == 4 * (32 + 32 + 96)
    assert train['wide']['stored_ratio'] == 2.5 and train['plain']['stored_ratio'] == 1
    assert train['plain']['step_ratio'] == (1, 1, 1) and min(train['wide']['step_ms']) > 0
    assert {'forward_ratio', 'backward_ratio', 'step_ratio'} <= set(train['wide'])
    assert not torch.equal(linear['wide'][1].weight, weights)  # trained

    for model in linear.values():
        model.eval()
    weights = linear['wide'][1].weight.detach().clone()
    inference = costs()
    assert not {'backward_ms', 'stored_bytes'} & set(inference['wide'])
    assert torch.equal(linear['wide'][1].weight, weights)

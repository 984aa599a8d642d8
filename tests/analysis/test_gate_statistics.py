"""Statistics of gates against loops over images."""

import numpy as np
import pytest
import torch

from se_mm.analysis.excitation import measure_gates
from se_mm.analysis.gate_statistics import GateStatistics, Moments, class_selectivity
from se_mm.analysis.gates import Gates, gate_layers
from se_mm.models import SEResNet
from se_mm.utils import InputError

GROUPINGS = {'class': ['cat', 'dog', 'fox', 'none'], 'size': ['small', 'large']}
MEMBERS = [(1, 5), (2,), (1, 2, 6), (), (3, 5, 6), (2, 5), (1,)]
CHANNELS = 5


def gates(dtype=torch.float32, **options):
    values = torch.rand(len(MEMBERS), CHANNELS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Gates(values.to(dtype), torch.rand_like(values) if options.get('spread') else None)


def filled(parts=1, dtype=torch.float32):
    """Statistics of all images, added in one or several parts."""
    statistics, found = GateStatistics(GROUPINGS), gates(dtype)
    for rows in np.array_split(np.arange(len(MEMBERS)), parts):
        statistics.add({'SE_2_1': Gates(found.mean[rows], None)}, [MEMBERS[row] for row in rows])
    return statistics


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize('parts', [1, 3])
def test_moments(parts, dtype):
    arrays, values = filled(parts, dtype).arrays(), gates(dtype).mean.double().numpy()
    assert arrays['groups'].tolist() == ['all', 'cat', 'dog', 'fox', 'none', 'small', 'large']
    for group in range(7):
        rows = [row for row, groups in zip(values, MEMBERS) if group in (0, *groups)]
        assert arrays['SE_2_1/count'][group] == len(rows)
        if not rows:
            assert group == 4 and np.isnan(arrays['SE_2_1/mean'][group]).all()
            continue
        for channel in range(CHANNELS):
            column = [row[channel] for row in rows]
            mean = sum(column) / len(column)
            variance = sum((value - mean) ** 2 for value in column) / len(column)
            assert arrays['SE_2_1/mean'][group, channel] == pytest.approx(mean, rel=1e-12)
            assert arrays['SE_2_1/variance'][group, channel] == pytest.approx(variance, rel=1e-9, abs=1e-15)
            assert arrays['SE_2_1/minimum'][group, channel] == min(column)
            assert arrays['SE_2_1/maximum'][group, channel] == max(column)
            assert arrays['SE_2_1/low'][group, channel] == sum(value < 0.1 for value in column)
            assert arrays['SE_2_1/high'][group, channel] == sum(value > 0.9 for value in column)


def test_processes_add_up():
    found, parts = gates(), []
    for rank in range(2):
        part = GateStatistics(GROUPINGS)
        part.add({'SE_2_1': Gates(found.mean[rank::2], found.mean[rank::2])}, MEMBERS[rank::2])
        parts.append(part)
    parts[0].merge(parts[1])
    whole = GateStatistics(GROUPINGS)
    whole.add({'SE_2_1': Gates(found.mean, found.mean)}, MEMBERS)
    for name, array in whole.arrays().items():
        if array.dtype.kind == 'f':
            np.testing.assert_allclose(parts[0].arrays()[name], array, rtol=1e-12)
        else:
            assert (parts[0].arrays()[name] == array).all()


def test_profile():
    (row,), values = filled().profile(), gates().mean.double().numpy()
    assert (row.name, row.channels) == ('SE_2_1', CHANNELS)
    assert row.mean == pytest.approx(values.mean())
    assert row.channel_spread == pytest.approx(values.mean(0).std())
    assert row.from_identity == pytest.approx(np.sqrt(((values - 1) ** 2).mean()))
    assert row.from_mean == pytest.approx(np.sqrt(((values - values.mean(0)) ** 2).mean()))
    assert row.high == pytest.approx((values > 0.9).mean()) and row.low == pytest.approx((values < 0.1).mean())
    pairs = [(group, value) for value, groups in zip(values, MEMBERS) for group in groups if group < 5]
    everything = np.array([value for _, value in pairs])
    between = within = 0.0
    for group in (1, 2, 3):
        mine = np.array([value for found, value in pairs if found == group])
        between += len(mine) * ((mine.mean(0) - everything.mean(0)) ** 2).sum()
        within += ((mine - mine.mean(0)) ** 2).sum()
    share = row.eta_squared['class']
    assert share.value == pytest.approx(between / (between + within))
    assert share.by_chance == pytest.approx(2 / (len(pairs) - 1))


def test_eta_squared_by_chance():
    """What groups drawn at random have on average."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(20):
        statistics = GateStatistics({'class': [str(i) for i in range(10)]})
        labels = torch.randint(1, 11, (60,), generator=generator)
        statistics.add({'a': Gates(torch.rand(60, 30, generator=generator), None)}, labels[:, None].tolist())
        found.append(statistics.profile()[0].eta_squared['class'])
    assert np.mean([share.value for share in found]) == pytest.approx(found[0].by_chance, rel=0.05)


def test_class_selectivity():
    mean = np.array([[0.8, 0.5], [0.2, 0.5], [0.4, 0.5], [np.nan, np.nan]])
    assert class_selectivity(mean) == pytest.approx(((0.8 - 0.3) / (0.8 + 0.3) + 0) / 2)
    assert class_selectivity(mean[[0, 3]]) is None


def test_dead_channels():
    statistics = GateStatistics()
    statistics.add({'a': Gates(torch.tensor([[0.01, 0.05, 0.9], [0.02, 0.3, 0.95]]), None)})
    (row,) = statistics.profile()
    assert row.dead == pytest.approx(1 / 3) and row.eta_squared == {} and row.selectivity is None


def test_a_thousand_classes_fit_into_a_gibibyte():
    size = 0
    for layer in gate_layers(SEResNet(50)):
        channels = layer.source.conv.out_channels
        moments = Moments.empty(1001, Gates(torch.empty(1, channels, device='meta'), None))
        tensors = [value for value in vars(moments).values() if value is not None]
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert 2**28 < size < 2**29


def test_any_model_and_loader():
    torch.manual_seed(0)
    model = SEResNet(18, base_channels=16).train()
    loader = [(torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 1])), (torch.randn(1, 3, 32, 32), torch.tensor([1]))]
    statistics = measure_gates(model, loader, groupings={'class': ['cat', 'dog']})
    assert statistics.images == 4 and statistics.paths['SE_2_1'] == 'layer1.0.se_layer' and model.training
    assert statistics.layers['SE_2_1'].count.tolist() == [4, 1, 3]
    assert measure_gates(model, loader).groups == ['all']


def test_mistakes():
    statistics = filled()
    with pytest.raises(InputError, match='^SE_2_1 has gates of 7 images, but 2 images came'):
        statistics.add({'SE_2_1': gates()}, [(), ()])
    with pytest.raises(InputError, match='^class bird does not exist: choose of cat, dog, fox, none'):
        statistics.group('class', 'bird')
    with pytest.raises(InputError, match='^class none has no images'):
        statistics.group('class', 'none')

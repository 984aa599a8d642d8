"""Statistics of gates against loops over images."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from se_mm.analysis.excitation import measure_gates
from se_mm.analysis.gate_profile import Share, class_factor, class_selectivity
from se_mm.analysis.gate_statistics import GateStatistics, Moments
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


def share_of(rank, processes):
    """Statistics of a process's images; a map of one position and a process without images are among them."""
    found, part = gates(), GateStatistics(GROUPINGS)
    if rank < 2:
        rows = slice(rank, None, min(processes, 2))
        spread = None if rank else gates().mean[::2]
        part.add({'SE_2_1': Gates(found.mean[rows], spread)}, MEMBERS[rows])
    return part


def run_process(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=3)
    part = share_of(rank, 3)
    part.reduce()
    part.save(folder / f'{rank}.npz')
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_add_up(tmp_path):
    torch.multiprocessing.spawn(run_process, (tmp_path,), nprocs=3)
    whole = share_of(0, 1).arrays()  # with the spread of the first process's images
    for rank in range(3):
        found = np.load(tmp_path / f'{rank}.npz')
        assert set(found.files) == set(whole)
        for name, array in whole.items():
            if array.dtype.kind == 'f':
                np.testing.assert_allclose(found[name], array, rtol=1e-12)
            else:
                assert (found[name] == array).all()


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
    assert abs(np.mean([share.beyond_chance for share in found])) < 0.01
    assert Share(1.0, 0.3).beyond_chance == 1 and Share(0.3, 0.3).beyond_chance == 0


def test_class_selectivity():
    mean = np.array([[0.8, 0.5], [0.2, 0.5], [0.4, 0.5], [np.nan, np.nan]])
    assert class_selectivity(mean) == pytest.approx(((0.8 - 0.3) / (0.8 + 0.3) + 0) / 2)
    assert class_selectivity(mean[[0, 3]]) is None
    assert class_selectivity(mean - 0.5) is None  # tanh


def test_class_factor():
    together, rng = np.array([0.2, 0.5, 0.9, 0.4]), np.random.default_rng(0)
    factors = np.array([0.8, 1.0, 1.2])[:, None]
    assert class_factor(factors * together) == pytest.approx(1)
    across = rng.normal(size=(3, 4))
    across -= across @ together[:, None] * together / (together @ together)  # changes no factor
    across -= across.mean(0)
    assert class_factor(together + 0.1 * across) == pytest.approx(0, abs=1e-12)
    both = factors * together + 0.1 * across
    share = (0.2**2 * 2 * together @ together) / (0.2**2 * 2 * together @ together + 0.01 * (across**2).sum())
    assert class_factor(both) == pytest.approx(share)
    assert class_factor(both[:1]) is None and class_factor(np.stack([together, together])) is None
    assert class_factor(np.stack([together, np.full(4, np.nan), 2 * together])) == pytest.approx(1)


def test_class_selectivity_by_chance():
    """Of classes without meaning."""
    generator = torch.Generator().manual_seed(0)
    statistics = GateStatistics({'class': [str(i) for i in range(5)]})
    labels = torch.randint(1, 6, (200,), generator=generator)
    statistics.add({'a': Gates(torch.rand(200, 5000, generator=generator), None)}, labels[:, None].tolist())
    (row,) = statistics.profile()
    assert row.selectivity_by_chance == pytest.approx(row.selectivity, rel=0.05)


def test_dead_channels():
    statistics = GateStatistics()
    statistics.add({'a': Gates(torch.tensor([[0.01, 0.05, 0.9], [0.02, 0.3, 0.95]]), None)})
    (row,) = statistics.profile()
    assert row.dead == pytest.approx(1 / 3) and row.eta_squared == {} and row.selectivity is None
    statistics = GateStatistics()
    statistics.add({'tanh': Gates(torch.tensor([[0.01, -0.9], [-0.02, -0.8]]), None)})
    assert statistics.profile()[0].dead == 0.5


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
    model.layer1.eval()
    statistics = measure_gates(model, loader, classes=['cat', 'dog'])
    assert statistics.images == 4 and statistics.paths['SE_2_1'] == 'layer1.0.se_layer'
    assert model.training and model.layer2.training and not model.layer1[0].bn1.training
    assert statistics.layers['SE_2_1'].count.tolist() == [4, 1, 3]
    assert measure_gates(model, loader).groups == ['all']


def test_mistakes():
    statistics = filled()
    with pytest.raises(InputError, match='^SE_2_1 has gates of 7 images, but 2 images came'):
        statistics.add({'SE_2_1': gates()}, [(), ()])
    with pytest.raises(InputError, match='^SE_3_1 has gates of 7 images, but 1 images came'):
        statistics.add({'SE_3_1': gates(), 'SE_2_1': Gates(gates().mean[:1], None)})
    with pytest.raises(InputError, match='^an image is in group 7: the groups have the numbers 1 to 6'):
        statistics.add({'SE_2_1': gates()}, [*MEMBERS[:-1], (7,)])
    with pytest.raises(InputError, match='^an image has class -1: classes have the numbers 0 to 1'):
        measure_gates(SEResNet(18, base_channels=16), [(torch.zeros(1, 3, 32, 32), [-1])], classes=['cat', 'dog'])
    with pytest.raises(InputError, match='^class bird does not exist: choose of cat, dog, fox, none'):
        statistics.group('class', 'bird')
    with pytest.raises(InputError, match='^class none has no images'):
        statistics.group('class', 'none')


def test_gates_that_are_not_finite():
    model = SEResNet(18, base_channels=16)
    model.layer2[1].se_layer.conv2.conv.bias.data[3] = torch.nan
    with pytest.raises(InputError, match='gates of SE_3_2 are not finite: look for NaN'):
        measure_gates(model, [(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), [0, 0])])

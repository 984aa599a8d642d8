"""Tensors that no network may get: no error of torch, but other weights than the checkpoint's."""

import re

import pytest
import torch
from torch import nn

from se_mm.models import SEResNet
from se_mm.utils import InputError
from se_mm.weights import load_backbone, load_model, read_checkpoint

CONV, NORM, VARIANCE = 'layer2.0.conv2.weight', 'layer2.0.bn2.weight', 'layer2.0.bn2.running_var'
COUNTER = 'layer2.0.bn2.num_batches_tracked'


@pytest.fixture(scope='module')
def state():
    torch.manual_seed(0)
    return SEResNet(18, base_channels=16).state_dict()


def with_value(tensor, value):
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


CHANGES = {
    'without values': (CONV, lambda t: t.to('meta'), 'have no values'),
    'sparse': (CONV, lambda t: t.to_sparse(), 'are sparse, nested or quantized'),
    'quantized': (CONV, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), 'are sparse, nested or quantized'),
    'integer': (CONV, lambda t: t.int(), 'hold integer numbers, and the model needs floating ones'),
    'bool': (CONV, lambda t: t.bool(), 'hold integer numbers, and the model needs floating ones'),
    'complex': (CONV, lambda t: t.to(torch.complex64), 'hold complex numbers, and the model needs floating ones'),
    'counter without values': (COUNTER, lambda t: t.half().to('meta'), 'have no values'),
    'complex counter': (COUNTER, lambda t: t + 1j, 'hold complex numbers, and the model needs integer ones'),
    'nan': (CONV, lambda t: with_value(t, torch.nan), 'have NaN or infinite values'),
    'infinite': (NORM, lambda t: with_value(t, -torch.inf), 'have NaN or infinite values'),
    'nan in half': (CONV, lambda t: with_value(t, torch.nan).half(), 'have NaN or infinite values'),
    'negative variance': (VARIANCE, lambda t: with_value(t, -1e-3), 'are negative variances'),
    'zero': (CONV, torch.zeros_like, 'are weights of layers that are all zero'),
}


@pytest.mark.parametrize('kind', CHANGES)
def test_refused(kind, state, tmp_path):
    name, change, words = CHANGES[kind]
    changed = {**state, name: change(state[name])}
    whole = {f'backbone.{key}': tensor for key, tensor in changed.items()}
    model = nn.ModuleDict(dict(backbone=SEResNet(18, base_channels=16)))
    message = re.escape(f'is refused: of {len(state)} tensors 1 {words}')
    for strict in (True, False):
        with pytest.raises(InputError, match=message) as caught:
            load_model(model, whole, 'a.pth', strict=strict)
        assert f'(e.g. backbone.{name})' in str(caught.value)
    torch.save(changed, tmp_path / 'a.pth')
    model, before = SEResNet(18, base_channels=16), SEResNet(18, base_channels=16).state_dict()
    model.load_state_dict(before)
    with pytest.raises(InputError, match=r'a\.pth ' + message) as caught:
        load_backbone(model, tmp_path / 'a.pth')
    assert f'(e.g. {name})' in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_all_faults_are_counted(state):
    faulty = {**state, CONV: state[CONV] * torch.nan, NORM: state[NORM] * torch.inf, VARIANCE: state[VARIANCE] - 2}
    with pytest.raises(InputError, match=rf'2 have NaN .*\(e\.g\. layer2\.0\..*\); 1 are negative .*{VARIANCE}'):
        load_model(SEResNet(18, base_channels=16), faulty, 'a.pth')


def test_allowed(state):
    """Other precisions, sums that overflow, and zeros that networks start from."""
    last_norms = [f'layer{stage}.{block}.bn2.weight' for stage in (1, 2, 3, 4) for block in (0, 1)]
    changes = {name: torch.zeros_like(state[name]) for name in [*last_norms, VARIANCE]}
    changes[CONV] = state[CONV].double()
    changes['layer1.0.conv1.weight'] = state['layer1.0.conv1.weight'].half()
    changes['layer1.0.conv2.weight'] = torch.full_like(state['layer1.0.conv2.weight'], 1e38)  # the sum is infinite
    balanced = changes['layer1.1.conv2.weight'] = torch.ones_like(state['layer1.1.conv2.weight'])
    balanced.view(-1)[::2] = -1  # the sum is 0
    load_model(model := SEResNet(18, base_channels=16), {**state, **changes}, 'a.pth')
    assert torch.equal(model.state_dict()['layer1.1.conv2.weight'], balanced)


def test_zeros_by_design_are_allowed(state):
    """Offsets of deformable convolutions, and SE that starts as the identity."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    nn.init.zeros_(model[1].weight)
    load_model(model, model.state_dict(), 'a.pth')
    gates = 'layer1.0.se_layer.conv2.conv.weight'
    load_model(SEResNet(18, base_channels=16), {**state, gates: torch.zeros_like(state[gates])}, 'a.pth')


def test_reading_and_converting_look_at_no_values(state, tmp_path):
    """A checkpoint with NaN can still be looked into."""
    torch.save({**state, CONV: state[CONV] * torch.nan}, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['state_dict'][CONV].isnan().all()


def test_tensors_of_no_layer_are_not_looked_at(state):
    load_model(SEResNet(18, base_channels=16), {**state, 'other': torch.tensor(torch.nan)}, 'a.pth', strict=False)


def test_copies_that_fail_are_errors():
    class Fails(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
            errors.append('While copying the parameter named "weight", it went wrong')

    model = Fails(2, 2)
    with pytest.raises(InputError, match=r'1 not copied \(e\.g\. While copying the parameter named "weight"'):
        load_model(model, model.state_dict(), 'a.pth', strict=False)


def test_halved_state_dicts_load(tmp_path):
    """With their counters, which a number of 16 bits cannot hold."""
    model = SEResNet(18, base_channels=16)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    state[COUNTER].fill_(torch.inf)
    torch.save(state, tmp_path / 'a.pth')
    loaded = SEResNet(18, base_channels=16)
    load_backbone(loaded, tmp_path / 'a.pth')
    assert torch.equal(loaded.conv1.weight, state['conv1.weight'].float())
    torch.save({f'backbone.{name}': tensor for name, tensor in state.items()}, tmp_path / 'b.pth')
    load_model(nn.ModuleDict(dict(backbone=loaded)), torch.load(tmp_path / 'b.pth'), 'b.pth')

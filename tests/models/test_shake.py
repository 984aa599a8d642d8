"""Shake-Shake networks against functions written after the author's code, https://github.com/xgastaldi/shake-shake."""

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.optim import build_optim_wrapper
from torch.nn import functional as F

from conftest import CONFIGS
from se_mm.models import SEShakeShake
from se_mm.models.fresh_se import start_as_identity
from se_mm.models.shake import ShakeBlock
from se_mm.utils.config import build_model, load_config, use_scope
from test_twins import randomize

ARCHS = dict(
    basic=dict(blocks=2, width=16, groups=None, even=False), resnext=dict(blocks=2, width=16, groups=2, even=True)
)


class Scaled(torch.autograd.Function):
    """Every image times its number; in backward, its gradient times another number."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.numbers = backward
        return torch.stack([number * image for number, image in zip(forward, x)])

    @staticmethod
    def backward(ctx, grad):
        return torch.stack([number * image for number, image in zip(ctx.numbers, grad)]), None, None


class Functional:
    """A network as a function of a state dict. ``numbers`` are for each unit those of forward and of backward."""

    def __init__(self, state, training, numbers):
        self.state, self.training, self.numbers = state, training, iter(numbers)

    def norm(self, name, x):
        mean, var, weight, bias = (
            self.state[f'{name}.{key}'] for key in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return F.batch_norm(x, mean.clone(), var.clone(), weight, bias, self.training)

    def conv_norm(self, name, x, **options):
        return self.norm(f'{name}.bn', F.conv2d(x, self.state[f'{name}.conv.weight'], **options))

    def se(self, name, y):
        z = y.mean((2, 3))
        for i, act in ((1, torch.relu), (2, torch.sigmoid)):
            layer = f'{name}.se_layer.conv{i}.conv'
            z = act(z @ self.state[f'{layer}.weight'][:, :, 0, 0].T + self.state[f'{layer}.bias'])
        return y * z[:, :, None, None]

    def basic_branch(self, name, x, stride, _):
        y = self.conv_norm(f'{name}.0', x.relu(), stride=stride, padding=1)
        return self.conv_norm(f'{name}.1', y.relu(), padding=1)

    def resnext_branch(self, name, x, stride, groups):
        y = self.conv_norm(f'{name}.0', x).relu()
        y = self.conv_norm(f'{name}.1', y, stride=stride, padding=1, groups=groups).relu()
        return self.conv_norm(f'{name}.2', y)

    def basic_shortcut(self, name, x, stride):
        """Two paths; the second is shifted by one pixel right and one pixel down."""
        x, weight = x.relu(), self.state[f'{name}.1.conv.weight']
        first = F.conv2d(F.avg_pool2d(x, 1, stride), weight[: len(weight) // 2])
        second = F.conv2d(F.avg_pool2d(F.pad(x, (1, -1, 1, -1)), 1, stride), weight[len(weight) // 2 :])
        return self.norm(f'{name}.1.bn', torch.cat([first, second], 1))

    def unit(self, name, x, stride, groups):
        branch = self.basic_branch if groups is None else self.resnext_branch
        forward, backward = next(self.numbers)
        mix = Scaled.apply(branch(f'{name}.branch1', x, stride, groups), forward, backward)
        mix = mix + Scaled.apply(branch(f'{name}.branch2', x, stride, groups), 1 - forward, 1 - backward)
        if not any(key.startswith(f'{name}.shortcut.') for key in self.state):
            return x + self.se(name, mix)
        shortcut = self.basic_shortcut if groups is None else self.conv_norm
        return shortcut(f'{name}.shortcut', x, stride=stride) + self.se(name, mix)

    def __call__(self, x, blocks, groups):
        x = self.conv_norm('stem', x, padding=1)
        for i in range(3):
            for j in range(blocks):
                x = x if groups is None else x.relu()
                x = self.unit(f'stage{i + 1}.{j}', x, 2 if i and not j else 1, groups)
        return x.relu()


def network(kind, even=False, **options):
    return randomize(SEShakeShake(dict(ARCHS[kind], even=even), se_ratio=4, **options)).double()


def images(size=(9, 12)):
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def results(run, parameters, x):
    """Output, and gradients of images and parameters."""
    out = run(x.requires_grad_())
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return out, *torch.autograd.grad((out * weights).sum(), [x, *parameters])


@pytest.mark.parametrize('kind', ARCHS)
@pytest.mark.parametrize('mode', ['shake', 'even', 'evaluation'])
@pytest.mark.parametrize('with_cp', [False, True])
def test_outputs_and_gradients(kind, mode, with_cp):
    training = mode != 'evaluation'
    model = network(kind, even=mode == 'even', with_cp=with_cp).train(training)
    half = torch.full((3,), 0.5, dtype=torch.float64)
    torch.manual_seed(5)
    numbers = []
    for _ in range(6):
        forward = torch.rand(3, dtype=torch.float64) if training else half
        numbers.append((forward, torch.rand(3, dtype=torch.float64) if mode == 'shake' else half))
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    parameters = {name: state[name].requires_grad_() for name, _ in model.named_parameters()}
    reference = Functional(state, training, numbers)
    options = dict(blocks=2, groups=ARCHS[kind]['groups'])
    expected = results(lambda x: reference(x, **options), parameters.values(), images())
    torch.manual_seed(5)
    actual = results(lambda x: model(x)[-1], model.parameters(), images())
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9 * theirs.abs().max().item())


@pytest.mark.parametrize('even', [False, True])
def test_mix_in_half_precision(even):
    """Values and gradients are those of the drawn numbers, also where the branches lie far apart."""
    unit = ShakeBlock(4, 4, stride=1, groups=None, even=even, make_se_layer=torch.nn.Identity, norm_cfg=dict(type='BN'))
    generator = torch.Generator().manual_seed(1)
    branches = [torch.randn(5, 4, 6, 6, generator=generator).bfloat16().requires_grad_() for _ in range(2)]
    torch.manual_seed(3)
    out = unit.train().mix(*branches)
    out.sum().backward()
    torch.manual_seed(3)
    a = torch.rand_like(out[:, :1, :1, :1])
    b = torch.full_like(a, 0.5) if even else torch.rand_like(a)
    exact = a.double() * branches[0].double() + (1 - a.double()) * branches[1].double()
    assert out.dtype == torch.bfloat16 and len(set(a.flatten().tolist())) == 5
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.05)
    for branch, number in zip(branches, (b, 1 - b)):
        assert torch.equal(branch.grad, number.expand_as(branch))


def test_frozen_stages_do_not_shake():
    model = network('basic', frozen_stages=1).train()
    with torch.no_grad():
        first, second = (model.stage1(model.stem(images())) for _ in range(2))
        assert torch.equal(first, second) and not torch.equal(model.stage2(first), model.stage2(first))


# Of classifiers of ten classes. The paper of the networks prints 34.4M beside errors on CIFAR-100; a hundred classes
# need 0.09M more.
@pytest.mark.parametrize(
    'arch, params',
    [
        (dict(blocks=4, width=32, groups=None, even=False), '2.9'),
        (dict(blocks=4, width=64, groups=None, even=False), '11.7'),
        ('shake_shake26_2x96d', '26.2'),
        ('shake_even29_2x4x64d', '34.4'),
    ],
    ids=['26_2x32d', '26_2x64d', '26_2x96d', '29_2x4x64d'],
)
def test_published_parameters(arch, params):
    with torch.device('meta'):
        backbone = SEShakeShake(arch, with_se=False)
        params_of_head = 10 * (len(backbone.stage3[0].branch1[-1].conv.weight) + 1)
    assert f'{(sum(p.numel() for p in backbone.parameters()) + params_of_head) / 1e6:.1f}' == params


@torch.no_grad()
def test_deployed_and_fresh_se_of_resnext():
    model = network('resnext').eval()
    plain = network('resnext', with_se=False).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    expected = model(images())[-1]
    report = model.switch_to_deploy()
    torch.testing.assert_close(model(images())[-1], expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())
    assert {row.why for row in report if row.kind == 'SE'} == {'SE takes the mix of two branches'}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    fresh = network('resnext')
    fresh.load_state_dict(plain.state_dict(), strict=False)
    start_as_identity(fresh)
    torch.testing.assert_close(fresh.eval()(images())[-1], plain(images())[-1])


@pytest.mark.parametrize('arch', ['26_2x96d', dict(blocks=4, width=96), None], ids=str)
def test_wrong_arch(arch):
    with pytest.raises(
        ValueError, match="choose one of .'shake_even29_2x4x64d', 'shake_shake26_2x96d'.*or give a dict"
    ):
        SEShakeShake(arch)


@pytest.mark.parametrize(
    'config, lr, batch, decay, kind',
    [
        ('se_shake_shake26_2x96d_cifar10', 0.2, 128, 1e-4, 'basic'),
        ('se_shake_even29_2x4x64d_cifar100', 0.025, 32, 5e-4, 'resnext'),
    ],
)
def test_a_step_of_the_recipe(config, lr, batch, decay, kind):
    cfg = load_config(CONFIGS / 'cifar' / f'{config}.py')
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler.T_max == 1800
    assert SEShakeShake.arch_settings[cfg.model.backbone.arch]['even'] == (kind == 'resnext')
    cfg.model.backbone.arch = dict(ARCHS[kind], blocks=1)
    cfg.model.head.in_channels = 64
    cfg.model.data_preprocessor = cfg.data_preprocessor
    use_scope(cfg)
    torch.manual_seed(0)
    np.random.seed(0)
    model = build_model(cfg).train()
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    (group,) = optim_wrapper.param_groups
    assert (group['lr'], group['weight_decay'], group['nesterov']) == (lr, decay, True)
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    generator = np.random.default_rng(0)
    data = [
        pipeline(dict(img=generator.integers(0, 256, (32, 32, 3), dtype=np.uint8), gt_label=label))
        for label in range(4)
    ]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loss = model.train_step(pseudo_collate(data), optim_wrapper)['loss']
    assert loss.isfinite() and not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]

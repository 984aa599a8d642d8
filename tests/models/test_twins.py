"""The plain twins of the families, and what SE adds, against other implementations."""

import re

import pytest
import timm
import torch
from mmengine.config import Config
from mmpretrain.models import VGG, ShuffleNetV1
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from conftest import CONFIGS
from se_mm.models import SEVGG, SEInceptionResNetV2, SEMobileNet, SEResNetCIFAR, SEShuffleNet
from se_mm.registry import MODELS


def randomize(module):
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.copy_((noise - 0.5) * (12 / fan_in) ** 0.5 if tensor.ndim > 1 else noise + 0.5)
    return module


def copy_in_order(theirs, ours, image):
    """Copy parameters and statistics between networks that run the same layers in the same order."""

    def leaves(model):
        order = []
        hooks = [
            module.register_forward_hook(lambda module, *_: order.append(module))
            for module in model.modules()
            if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        ]
        with torch.no_grad():
            model(image)
        for hook in hooks:
            hook.remove()
        return order

    pairs = list(zip(leaves(theirs), leaves(ours), strict=True))
    for source, target in pairs:
        state = source.state_dict()
        if getattr(source, 'bias', None) is not None and getattr(target, 'bias', 0) is None:
            nn.init.zeros_(source.bias)  # of a convolution before batch norm, which is idle
            del state['bias']
        target.load_state_dict(state, strict=True)


@pytest.mark.parametrize('size', [(299, 299), (150, 201)])
@pytest.mark.slow
def test_inception_resnet_v2_is_timms(size):
    theirs = randomize(timm.create_model('inception_resnet_v2', num_classes=0)).double().eval()
    ours = SEInceptionResNetV2(with_se=False).double().eval()
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    copy_in_order(theirs, ours, image)
    with torch.no_grad():
        expected = theirs.forward_features(image)
        torch.testing.assert_close(ours(image)[-1], expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


@pytest.mark.slow
def test_places_365_cnn():
    """Torchvision's ResNet with the units and the stem of https://github.com/lishen-shirley/Places2-CNNs."""

    def conv(cin, cout, stride):
        return [nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]

    theirs = ResNet(Bottleneck, [8, 12, 23, 3])
    theirs.conv1 = nn.Sequential(*conv(3, 64, 2), *conv(64, 64, 1), *conv(64, 128, 1))
    theirs.bn1 = theirs.relu = theirs.fc = nn.Identity()
    theirs.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    theirs.layer1[0].conv1, theirs.layer1[0].downsample[0] = (nn.Conv2d(128, c, 1, bias=False) for c in (64, 256))
    randomize(theirs).eval()
    config = Config.fromfile(CONFIGS / 'places365_challenge' / 'places-cnn_places365_challenge.py')
    ours = MODELS.build(config.model.backbone).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    state = {re.sub(r'^conv1', 'stem', key): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    with torch.no_grad():
        expected = theirs(image)
        torch.testing.assert_close(
            ours(image)[0].mean((2, 3)), expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5
        )


@pytest.mark.slow
def test_vgg_is_mmpretrains():
    theirs = randomize(VGG(16, num_classes=1000, norm_cfg=dict(type='BN')))
    theirs.eval()
    ours = SEVGG(16, num_classes=1000, with_se=False).eval()
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    copy_in_order(theirs, ours, image)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)[0], theirs(image)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('groups', [1, 2, 3, 4, 8])
def test_shufflenet_is_mmpretrains(groups):
    theirs = randomize(ShuffleNetV1(groups, out_indices=(0, 1, 2))).double()
    theirs.eval()
    ours = SEShuffleNet(groups, out_indices=(0, 1, 2), with_se=False).double().eval()
    image = torch.rand(1, 3, 97, 130, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    copy_in_order(theirs, ours, image)
    with torch.no_grad():
        for a, b in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item())


def test_mobilenet_is_timms():
    theirs = randomize(timm.create_model('mobilenetv1_100', num_classes=0)).double().eval()
    for module in theirs.modules():
        if hasattr(module, 'act') and isinstance(module.act, nn.ReLU6):
            module.act = nn.ReLU()
    ours = SEMobileNet(with_se=False).double().eval()
    image = torch.rand(1, 3, 97, 130, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    copy_in_order(theirs, ours, image)
    with torch.no_grad():
        expected = theirs.forward_features(image)
        torch.testing.assert_close(ours(image)[-1], expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


class FunctionalCIFAR:
    """The CIFAR networks written down as functions of a state dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, stride=1):
        weight = self.state[f'{name}.weight']
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    def norm(self, name, x):
        keys = ('running_mean', 'running_var', 'weight', 'bias')
        return F.batch_norm(x, *(self.state[f'{name}.{key}'] for key in keys))

    def se(self, name, y):
        z = y.mean((2, 3))
        for i, act in ((1, torch.relu), (2, torch.sigmoid)):
            layer = f'{name}.se_layer.conv{i}.conv'
            z = act(z @ self.state[f'{layer}.weight'][:, :, 0, 0].T + self.state[f'{layer}.bias'])
        return y * z[:, :, None, None]

    def basic(self, name, x, stride, width):
        y = self.norm(f'{name}.bn1', self.conv(f'{name}.conv1', x, stride)).relu()
        y = self.se(name, self.norm(f'{name}.bn2', self.conv(f'{name}.conv2', y)))
        shortcut = x.new_zeros(len(x), width, *y.shape[2:])
        shortcut[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
        return (y + shortcut).relu()

    def preact(self, name, x, stride, width, strides):
        y = self.norm(f'{name}.norm1', x).relu()
        shortcut = self.conv(f'{name}.shortcut', y, stride) if f'{name}.shortcut.weight' in self.state else x
        for i, step in enumerate(strides, 1):
            y = y if i == 1 else self.norm(f'{name}.norm{i}', y).relu()
            y = self.conv(f'{name}.conv{i}', y, step)
        return shortcut + self.se(name, y)

    def __call__(self, x, block, blocks, width):
        x = self.conv('stem.conv', x)
        if block == 'basic':
            x = self.norm('stem.bn', x).relu()
        for i in range(3):
            for j in range(blocks):
                name, stride, channels = f'stage{i + 1}.{j}', 2 if i and not j else 1, width * 2**i
                if block == 'basic':
                    x = self.basic(name, x, stride, channels)
                else:
                    strides = (stride, 1) if block == 'preact' else (stride, 1, 1)
                    x = self.preact(name, x, stride, channels, strides)
        return x if block == 'basic' else self.norm(f'stage3.{blocks}.0', x).relu()


# Parameters without classifier: 0.27M and 1.7M for the ResNets in the papers of the networks, 11.0M for WRN-16-8.
@pytest.mark.parametrize(
    'arch, params', [('resnet20', 0.27), ('resnet110', 1.73), ('resnet164', 1.70), ('wrn16_8', 10.95)]
)
def test_cifar_networks(arch, params):
    ours = randomize(SEResNetCIFAR(arch, se_ratio=4)).double().eval()
    plain = SEResNetCIFAR(arch, with_se=False)
    assert sum(p.numel() for p in plain.parameters()) / 1e6 == pytest.approx(params, abs=0.02)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected = FunctionalCIFAR(ours.state_dict())(image, **SEResNetCIFAR.arch_settings[arch])
        torch.testing.assert_close(ours(image)[-1], expected, rtol=1e-7, atol=1e-7 * expected.abs().max().item())

"""A tiny network of each family, for the tests of all families."""

import torch

from se_mm.registry import MODELS

RESNET = dict(base_channels=16, norm_eval=False, zero_init_residual=False)
TINY = {
    'SEResNet': dict(type='SEResNet', depth=18, **RESNET),
    'SEResNet-bottleneck': dict(type='SEResNet', depth=50, num_stages=2, strides=(1, 2), dilations=(1, 1), **RESNET),
    'SEResNeXt': dict(type='SEResNeXt', depth=50, groups=4, num_stages=2, strides=(1, 2), dilations=(1, 1), **RESNET),
    'SENet': dict(type='SENet', groups=4, stem_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), **RESNET),
    'SEBNInception': dict(type='SEBNInception', width=0.25, out_indices=(0, 1, 2)),
    'SEInceptionResNetV2': dict(type='SEInceptionResNetV2', width=0.25, blocks=(1, 1, 2), out_indices=(0, 1, 2)),
    'SEVGG': dict(type='SEVGG', depth=11, base_channels=16, out_indices=(0, 1, 2, 3, 4)),
    'SEMobileNet': dict(type='SEMobileNet', widen_factor=0.25, out_indices=(0, 1, 2, 3, 4)),
    'SEShuffleNet': dict(type='SEShuffleNet', widen_factor=0.5, out_indices=(0, 1, 2)),
    'SEResNetCIFAR-basic': dict(type='SEResNetCIFAR', arch=dict(block='basic', blocks=2, width=16)),
    'SEResNetCIFAR-preact': dict(type='SEResNetCIFAR', arch=dict(block='preact', blocks=2, width=32)),
    'SEResNetCIFAR-bottleneck': dict(type='SEResNetCIFAR', arch=dict(block='preact_bottleneck', blocks=2, width=64)),
    'SEShakeShake': dict(type='SEShakeShake', arch=dict(blocks=1, width=16, groups=None, even=False)),
    'SECNN': dict(type='SECNN', num_classes=None),
}
for _cfg in TINY.values():
    if _cfg['type'] in ('SEResNet', 'SEResNeXt', 'SENet'):
        _cfg.setdefault('out_indices', tuple(range(_cfg.get('num_stages', 4))))
    elif _cfg['type'] in ('SEResNetCIFAR', 'SEShakeShake'):
        _cfg['out_indices'] = (0, 1, 2)
STRIDES = dict(
    SEBNInception=(8, 16, 32), SEVGG=(2, 4, 8, 16, 32), SEMobileNet=(2, 4, 8, 16, 32), SEShuffleNet=(8, 16, 32),
    SEResNetCIFAR=(1, 2, 4), SEResNet=(4, 8, 16, 32), SEResNeXt=(4, 8), SECNN=(4,), SEShakeShake=(1, 2, 4),
)  # fmt: skip


def build(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = MODELS.build({**TINY[name], **kwargs, 'type': f'se_mm.{TINY[name]["type"]}'})
    model.init_weights()
    return model


def image(batch=2, height=96, width=96, dtype=torch.float32, seed=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss_of(outs):
    return sum(out.square().mean() for out in outs)

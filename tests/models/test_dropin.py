from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

SWAPS = dict(ResNet='SEResNet', ResNeXt='SEResNeXt')


def plain_backbones():
    """The distinct backbone settings of all of mmdet's configs that use its ResNet or ResNeXt."""
    folder = Path(mmdet.__file__).parent / '.mim' / 'configs'
    found, configs = {}, 0
    for path in sorted(folder.rglob('*.py')):
        if '_base_' in path.parts or 'type=' not in path.read_text() and '_base_' not in path.read_text():
            continue
        try:
            cfg = Config.fromfile(path)
        except Exception:  # configs in other languages, or needing packages that are not installed
            continue
        model = cfg.get('model', {})
        model = model.get('detector', model)
        backbone = model.get('backbone') if isinstance(model, dict) else None
        if isinstance(backbone, dict) and backbone.get('type') in SWAPS:
            configs += 1
            settings = {k: v for k, v in backbone.to_dict().items() if k not in ('init_cfg', 'pretrained')}
            found.setdefault(repr(sorted(settings.items())), (path.name, settings))
    return configs, list(found.values())


def test_every_mmdet_config_accepts_se():
    configs, backbones = plain_backbones()
    assert configs > 400 and len(backbones) > 40
    init_default_scope('mmdet')
    failures = []
    for name, settings in backbones:
        try:
            plain = MODELS.build(dict(settings))
            se = MODELS.build(dict(settings, type=SWAPS[settings['type']]))
        except Exception as error:
            failures.append(f'{name}: {error}')
            continue
        shapes = {k: v.shape for k, v in se.state_dict().items() if 'se_layer' not in k}
        if shapes != {k: v.shape for k, v in plain.state_dict().items()}:
            failures.append(f'{name}: other parameters than the plain backbone')
    assert not failures, '\n'.join(failures)


@pytest.mark.parametrize('name', ['SEResNet', 'se_mm.SEResNet'])
def test_detector_with_swapped_type(name):
    cfg = Config.fromfile(
        Path(mmdet.__file__).parent / '.mim' / 'configs' / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'
    )
    cfg.model.backbone.type = name
    init_default_scope('mmdet')
    assert type(MODELS.build(cfg.model).backbone).__module__ == 'se_mm.models.resnet'

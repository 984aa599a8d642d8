"""SE twins of existing configs."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

from mmengine.config import Config

from se_mm.checkpoints import published
from se_mm.checkpoints.formats import CAFFE, IMAGENET
from se_mm.models.base import is_pretrained
from se_mm.models.se_layer import VARIANTS
from se_mm.utils import InputError

# A plain backbone, whatever its scope, and what to write instead of its type.
SWAPS = {
    'ResNet': dict(type='se_mm.SEResNet'),
    'ResNetV1c': dict(type='se_mm.SEResNet', deep_stem=True),
    'ResNetV1d': dict(type='se_mm.SEResNet', deep_stem=True, avg_down=True),
    'ResNeXt': dict(type='se_mm.SEResNeXt'),
}
# What the packages' ResNets have for arguments that a config leaves out, where ours have something else.
DEFAULTS = {
    'mmdet': {},
    'mmpretrain': dict(norm_eval=False, out_indices=(3,)),
    'mmcls': dict(norm_eval=False, out_indices=(3,)),
    'mmseg': dict(norm_eval=False),
    'mmpose': dict(norm_eval=False, out_indices=(3,)),
}
# Arguments that weights are made for.
FITTING = dict(
    depth=None,
    groups=32,
    base_width=4,
    deep_stem=False,
    avg_down=False,
    style='pytorch',
    in_channels=3,
    base_channels=64,
)
IMAGES = dict(imagenet=IMAGENET, caffe=CAFFE)


def swap_of(backbone: object) -> dict | None:
    """What to write instead of a backbone's type, None if it is no plain ResNet or ResNeXt."""
    if not isinstance(backbone, dict) or not isinstance(backbone.get('type'), str):
        return None
    if 'expansion' in backbone:  # mmpretrain's wide residual networks
        return None
    scope, _, name = backbone['type'].rpartition('.')
    return SWAPS.get(name) if scope in ('', *DEFAULTS) else None


def backbones(model: dict | list, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Path and config of every backbone in a model that has an SE twin, those of teachers and other parts, too."""
    if path and swap_of(model):
        yield path, model
        return
    for key, value in model.items() if isinstance(model, dict) else enumerate(model):
        if isinstance(value, dict | list | tuple):
            yield from backbones(value, (*path, key))


def swapped(backbone: dict) -> dict:
    """The backbone's config with SE, its weights left out."""
    return {**{k: v for k, v in backbone.items() if k not in ('init_cfg', 'pretrained')}, **swap_of(backbone)}


def weights_for(backbone: dict) -> dict | None:
    """The published weights of lowest top-1 error that a backbone with SE can load by name, None if there are none.

    Weights of another rounding of the stem's pool count: the entry's arguments say so.
    """
    kind = backbone['type'].rpartition('.')[2]

    def wanted(arguments: dict) -> dict:
        return {key: arguments.get(key, default) for key, default in FITTING.items()}

    fitting = [
        entry
        for entry in published()
        if '://' in entry['checkpoint']
        and entry['arguments']['type'] == kind
        and wanted(entry['arguments']) == wanted(backbone)
    ]
    return min(fitting, key=lambda entry: entry['error'][0], default=None)


def named_weights(name: str, backbone: dict) -> dict | None:
    """The entry of published weights, None if a file or a name that is not in the list.

    Raises:
        InputError: it is of another network than the backbone.
    """
    entry = next((entry for entry in published() if entry['checkpoint'] == name), None)
    kind = backbone['type'].rpartition('.')[2]
    if entry and (entry['arguments']['type'], entry['arguments'].get('depth')) != (kind, backbone.get('depth')):
        raise InputError(
            f'weights {name} are for {entry["arguments"]}, not for {kind} of depth {backbone.get("depth")}'
        )
    return entry


def twin(cfg: Config, weights: str | None = None, variant: str = 'standard') -> tuple[dict, list[str]]:
    """What to change in a config so that its plain backbones have SE, and what to beware of.

    Args:
        cfg: config of a detector, classifier or other model.
        weights: checkpoint of the backbone, as ``init_cfg`` takes it; 'none' for random weights, None to choose
            published ones.
        variant: of SE; only the standard one has published weights.

    Returns:
        The changed keys as nested dicts, and warnings.

    Raises:
        InputError: no such variant; a config of classes; no plain backbone, or one inside a list, which no config
            can change in part.
    """
    if variant not in VARIANTS:
        raise InputError(f'variant {variant!r}: choose one of {", ".join(VARIANTS)}')
    found = [
        (path, part) for path, part in backbones(cfg.model.to_dict()) if not any('teacher' in str(k) for k in path)
    ]
    if str(cfg.model.to_dict().get('type')).count('.') > 1:
        raise InputError(
            f'{cfg.filename} names classes instead of types, and no config of types can inherit from it: in a copy of '
            'it, write SEResNet or SEResNeXt of se_mm.models in place of ResNet or ResNeXt'
        )
    if not found:
        raise InputError(f'{cfg.filename}: its model has no backbone of type {", ".join(SWAPS)}')
    changes, warnings = {}, []
    for path, written in found:
        name = '.'.join(map(str, ('model', *path)))
        if any(isinstance(key, int) for key in path):
            raise InputError(f'{cfg.filename}: {name} is in a list, which a config cannot change in part')
        defaults = DEFAULTS.get(written['type'].rpartition('.')[0] or cfg.get('default_scope'), {})
        plain = {**defaults, **written}
        change = {**deepcopy(swap_of(plain)), **{k: v for k, v in defaults.items() if k not in written}}
        if variant != 'standard':
            change['se_cfg'] = dict(variant=variant)
        owner = _at(cfg, ('model', *path[:-1]))
        pretrained = is_pretrained(plain.get('init_cfg')) or plain.get('pretrained') or owner.get('pretrained')
        entry = None
        if weights:
            entry = named_weights(weights, swapped(plain))
        elif pretrained and variant == 'standard':
            entry = weights_for(swapped(plain))
        checkpoint = weights or (entry and entry['checkpoint'])
        if checkpoint not in (None, 'none'):
            change['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
            if isinstance(plain.get('init_cfg'), dict | list):
                change['init_cfg']['_delete_'] = True
        elif pretrained:
            why = 'as asked for' if weights else 'there are no published weights of this network'
            warnings += _start_at_random(name, plain, change, why)
        if 'pretrained' in plain:
            change['pretrained'] = None
        if owner.get('pretrained'):  # mmsegmentation hands it to the backbone
            _set(changes, ('model', *path[:-1]), dict(pretrained=None))
        if entry:
            change |= {k: v for k, v in entry['arguments'].items() if k not in ('type', 'depth') and plain.get(k) != v}
            _set_images(cfg, path, IMAGES[entry['images']], changes)
        elif 'init_cfg' in change and change['init_cfg']:
            warnings.append(f'{name}: {checkpoint} is not in the list of published weights: see to the normalisation')
            if plain.get('frozen_stages', -1) > 0:
                warnings.append(
                    f'{name}: {plain["frozen_stages"]} stages are frozen; if {checkpoint} has no SE, set '
                    "frozen_stages=0 and init_cfg.fresh_se='identity'"
                )
        _set(changes, ('model', *path), change)
        images = (cfg.get('train_dataloader') or {}).get('batch_size')
        learns = not change.get('norm_eval', plain.get('norm_eval', True))
        if learns and (plain.get('norm_cfg') or {}).get('type', 'BN') == 'BN' and images in (1, 2):
            warnings.append(
                f"{name}: batch norm learns from {images} images a GPU: consider norm_cfg=dict(type='SyncBN')"
            )
    return changes, warnings


def _start_at_random(name: str, plain: dict, change: dict, why: str) -> list[str]:
    change['init_cfg'] = None
    learning = dict(norm_eval=False, frozen_stages=-1)
    stuck = {k: v for k, v in learning.items() if {'norm_eval': True, **plain}.get(k, v) != v}
    change |= stuck
    settings = ', '.join(f'{k}={v}' for k, v in stuck.items())
    return [f'{name} starts at random weights, {why}' + (f'; with {settings}, or they would stay' if stuck else '')]


def _at(cfg: Config, path: tuple) -> object:
    for key in path:
        cfg = cfg[key]
    return cfg


def _set(changes: dict, path: tuple, value: dict) -> None:
    for key in path:
        changes = changes.setdefault(key, {})
    changes.update(value)


def _set_images(cfg: Config, path: tuple, images: dict, changes: dict) -> None:
    """Override the normalisation nearest to a backbone, if it is another one."""
    places = [('model', *path[:n], 'data_preprocessor') for n in range(len(path) - 1, -1, -1)] + [
        ('data_preprocessor',)
    ]
    for place in places:
        part = cfg
        for key in place:
            part = part.get(key) if isinstance(part, dict | Config) else None
        if not isinstance(part, dict | Config) or part.get('mean') is None:
            continue
        rgb = 'to_rgb' if 'to_rgb' in part or place == ('data_preprocessor',) else 'bgr_to_rgb'
        expected = dict(images, **{rgb: True})
        different = {k: v for k, v in expected.items() if (list(part[k]) if k in ('mean', 'std') else part.get(k)) != v}
        if different:
            _set(changes, place, different)
        return

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


def swapped(backbone: dict, package: str | None = None) -> dict:
    """The backbone's config with SE, its weights left out; ``package`` is the one whose ResNet a bare type means."""
    kept = {k: v for k, v in backbone.items() if k not in ('init_cfg', 'pretrained')}
    return {**DEFAULTS.get(backbone['type'].rpartition('.')[0] or package, {}), **kept, **swap_of(backbone)}


def _fitting(arguments: dict) -> dict:
    arguments = {**arguments, 'base_width': arguments.get('width_per_group') or arguments.get('base_width', 4)}
    return {key: arguments.get(key, default) for key, default in FITTING.items()}


def weights_for(backbone: dict) -> dict | None:
    """The published weights of lowest top-1 error that a backbone with SE can load by name, None if there are none.

    Weights of another rounding of the stem's pool count: the entry's arguments say so.
    """
    kind = backbone['type'].rpartition('.')[2]
    fitting = [
        entry
        for entry in published()
        if '://' in entry['checkpoint']
        and entry['arguments']['type'] == kind
        and _fitting(entry['arguments']) == _fitting(backbone)
    ]
    return min(fitting, key=lambda entry: entry['error'][0], default=None)


def named_weights(name: str, backbone: dict) -> dict | None:
    """The entry of published weights, None if a file or a name that is not in the list.

    Raises:
        InputError: it is of another network than the backbone, or of another variant of SE.
    """
    entry = next((entry for entry in published() if entry['checkpoint'] == name), None)
    if entry is None:
        return None
    kind, have = backbone['type'].rpartition('.')[2], _fitting(backbone)
    different = {k for k, v in _fitting(entry['arguments']).items() if k != 'style' and v != have[k]}
    if different or entry['arguments']['type'] != kind:
        has = ', '.join(f'{key}={have[key]}' for key in sorted(different)) or 'its arguments'
        raise InputError(f'weights {name} are for {entry["arguments"]}, not for {kind} with {has}')
    if 'se_cfg' in backbone:
        raise InputError(f'weights {name} are of standard SE: leave out --variant, or give weights of your own')
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
        InputError: no such variant; a config of classes or of an unknown package; no plain backbone, or one inside
            a list, which no config can change in part; published weights of another network.
    """
    if variant not in VARIANTS:
        raise InputError(f'variant {variant!r}: choose one of {", ".join(VARIANTS)}')
    model = cfg.model.to_dict()
    if str(model.get('type')).count('.') > 1:
        raise InputError(
            f'{cfg.filename} names classes instead of types, and no config of types can inherit from it: in a copy of '
            'it, write SEResNet or SEResNeXt of se_mm.models in place of ResNet or ResNeXt'
        )
    found = [(path, part) for path, part in backbones(model) if not any('teacher' in str(key) for key in path)]
    if not found:
        raise InputError(f'{cfg.filename}: its model has no backbone of type {", ".join(SWAPS)}')
    changes, warnings = {}, []
    if cfg.get('load_from'):
        changes['load_from'] = None
        warnings.append(f'load_from: {cfg.load_from} is of the model without SE and left out')
    for path, written in found:
        _swap_backbone(cfg, ('model', *path), written, weights, variant, changes, warnings)
    return changes, warnings


def _swap_backbone(
    cfg: Config, path: tuple, written: dict, weights: str | None, variant: str, changes: dict, warnings: list[str]
) -> None:
    name = '.'.join(map(str, path))
    if any(isinstance(key, int) for key in path):
        raise InputError(f'{cfg.filename}: {name} is in a list, which a config cannot change in part')
    scope = written['type'].rpartition('.')[0] or cfg.get('default_scope')
    if scope not in (None, *DEFAULTS):
        raise InputError(
            f'{cfg.filename}: {name} is of {scope}, whose arguments are not known: {", ".join(DEFAULTS)} are'
        )
    complete = {**DEFAULTS.get(scope, {}), **written}
    change = {**deepcopy(swap_of(written)), **{k: v for k, v in complete.items() if k not in written}}
    if variant != 'standard':
        change['se_cfg'] = dict(variant=variant)

    pretrained = is_pretrained(written.get('init_cfg')) or written.get('pretrained') or cfg.get('load_from')
    for end in range(1, len(path)):
        owner = _at(cfg, path[:end])
        if owner.get('pretrained'):  # mmsegmentation hands it to the backbone
            _set(changes, path[:end], dict(pretrained=None))
            pretrained = True
        if is_pretrained(owner.get('init_cfg')):  # would be loaded over the backbone's own
            _set(changes, path[:end], dict(init_cfg=None))
            place = '.'.join(map(str, path[:end]))
            warnings.append(f'{place}.init_cfg: its checkpoint is of the model without SE and left out')
            pretrained = True

    with_se = {**complete, **change}
    entry = None
    if weights:
        entry = named_weights(weights, with_se)
    elif pretrained and variant == 'standard':
        entry = weights_for(with_se)
    checkpoint = weights or (entry and entry['checkpoint'])
    if 'pretrained' in written:
        change['pretrained'] = None
    if checkpoint in (None, 'none'):
        why = 'as asked for' if weights else 'there are no published weights of this network' if pretrained else None
        warnings += _start_at_random(name, complete, change, why)
    else:
        change['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
        if 'init_cfg' in written:
            change['init_cfg']['_delete_'] = True
        if entry:
            expected = dict(style='pytorch', stem_pool_ceil_mode=False) | entry['arguments']
            given = dict(style='pytorch', stem_pool_ceil_mode=False) | complete
            change |= {k: expected[k] for k in ('style', 'stem_pool_ceil_mode') if expected[k] != given[k]}
            _set_images(cfg, path, IMAGES[entry['images']], changes)
        else:
            warnings.append(f'{name}: {checkpoint} is not in the list of published weights: see to the normalisation')
            if complete.get('frozen_stages', -1) > 0:
                warnings.append(
                    f'{name}: {complete["frozen_stages"]} stages are frozen; if {checkpoint} has no SE, set '
                    "frozen_stages=0 and init_cfg.fresh_se='identity'"
                )
    _set(changes, path, change)

    images = (cfg.get('train_dataloader') or {}).get('batch_size')
    learns = not change.get('norm_eval', complete.get('norm_eval', True))
    if learns and (complete.get('norm_cfg') or {}).get('type', 'BN') == 'BN' and images in (1, 2):
        warnings.append(
            f'{name}: batch norm learns from {images} image{"s" * (images - 1)} a GPU: consider '
            "norm_cfg=dict(type='SyncBN'), or pretrained weights with norm_eval=True"
        )


def _start_at_random(name: str, complete: dict, change: dict, why: str | None) -> list[str]:
    if complete.get('init_cfg'):
        change['init_cfg'] = None
    learning = dict(norm_eval=False, frozen_stages=-1)
    stuck = {k: v for k, v in learning.items() if {'norm_eval': True, **complete}.get(k, v) != v}
    change |= stuck
    if not why and not stuck:
        return []
    settings = ', '.join(f'{k}={v}' for k, v in stuck.items())
    reason = f', {why}' if why else ''
    return [f'{name} starts at random weights{reason}' + (f'; with {settings}, or they would stay' if stuck else '')]


def _at(cfg: Config, path: tuple) -> object:
    for key in path:
        cfg = cfg[key]
    return cfg


def _set(changes: dict, path: tuple, value: dict) -> None:
    for key in path:
        changes = changes.setdefault(key, {})
    changes.update(value)


def _set_images(cfg: Config, path: tuple, images: dict, changes: dict) -> None:
    """Override the normalisations of the model's parts around a backbone, or else the config's, if they are others."""
    places = [(*path[:end], 'data_preprocessor') for end in range(1, len(path))]
    places += [(*place, 'data_preprocessor') for place in places]  # inside that of teacher and student
    places = [place for place in places if _normalises(cfg, place)] or [('data_preprocessor',)]
    for place in filter(lambda place: _normalises(cfg, place), places):
        part = _at(cfg, place)
        rgb = 'to_rgb' if 'to_rgb' in part or place == ('data_preprocessor',) else 'bgr_to_rgb'
        expected = dict(images, **{rgb: True})
        different = {k: v for k, v in expected.items() if (list(part[k]) if k in ('mean', 'std') else part.get(k)) != v}
        if different:
            _set(changes, place, different)


def _normalises(cfg: Config, place: tuple) -> bool:
    for key in place:
        cfg = cfg.get(key) if isinstance(cfg, dict | Config) else None
    return isinstance(cfg, dict) and cfg.get('mean') is not None

"""SE twins of existing configs: what to change so that plain backbones have SE."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

from mmengine.config import Config

from se_mm.models import SEResNeXt
from se_mm.models.architecture import NETWORKS, defaults_of
from se_mm.models.se_layer import VARIANTS
from se_mm.utils import InputError
from se_mm.utils.config import is_pretrained, type_name
from se_mm.weights import released
from se_mm.weights.formats import CAFFE, IMAGENET

# Types of plain backbones, whatever their scope, and what their twins have instead.
TWINS = {
    'ResNet': dict(type='se_mm.SEResNet'),
    'ResNetV1c': dict(type='se_mm.SEResNet', deep_stem=True),
    'ResNetV1d': dict(type='se_mm.SEResNet', deep_stem=True, avg_down=True),
    'ResNeXt': dict(type='se_mm.SEResNeXt'),
}
# Types of plain shared heads: the last stage of a backbone, which C4 detectors run on each region.
SHARED_HEADS = {
    'ResLayer': dict(type='se_mm.SEResLayer'),
    'ResLayerExtraNorm': dict(type='se_mm.SEResLayer', extra_norm=True),
}
# What the packages' ResNets and ResNeXts have for arguments that a config leaves out; only ResNeXts have groups.
DEFAULTS = {
    'mmdet': dict(groups=1),
    'mmpretrain': dict(norm_eval=False, out_indices=(3,), stem_channels=64),
    'mmcls': dict(norm_eval=False, out_indices=(3,), stem_channels=64),
    'mmseg': dict(norm_eval=False, groups=1, stem_channels=64),
    'mmpose': dict(norm_eval=False, out_indices=(3,), stem_channels=64),
}
# Arguments that weights are made for; a SEResNet has the defaults of a SEResNeXt for those that it lacks.
FITTING = 'depth groups base_width deep_stem avg_down style in_channels stem_channels base_channels expansion'.split()
IMAGES = dict(imagenet=IMAGENET, caffe=CAFFE)


def twin_type(backbone: object) -> dict | None:
    """``type`` and arguments that the twin of a backbone has instead of its type, None if it is no plain ResNet."""
    if not isinstance(backbone, dict) or not isinstance(backbone.get('type'), str):
        return None
    scope, _, name = backbone['type'].rpartition('.')
    return TWINS.get(name) if scope in ('', *DEFAULTS) else None


def backbones(model: dict | list, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Path and config of every backbone in a model that has an SE twin, those of teachers and other parts, too."""
    if path and twin_type(model):
        yield path, model
        return
    for key, value in model.items() if isinstance(model, dict) else enumerate(model):
        if isinstance(value, dict | list | tuple):
            yield from backbones(value, (*path, key))


def shared_heads(model: dict) -> Iterator[tuple[tuple, dict, tuple]]:
    """Path and config of every plain shared head beside a backbone that has an SE twin, and path of that backbone."""
    for path, _ in backbones(model):
        *above, name = path
        detector = _at(model, above) if name == 'backbone' else {}
        roi_head = detector.get('roi_head')
        head = roi_head.get('shared_head') if isinstance(roi_head, dict) else None
        if isinstance(head, dict) and type_name(head) in SHARED_HEADS:
            yield (*above, 'roi_head', 'shared_head'), head, path


def twin_of_shared_head(head: dict) -> dict:
    """The config of a plain shared head with SE, its weights left out."""
    arguments = {k: v for k, v in head.items() if k not in ('init_cfg', 'pretrained')}
    return {**arguments, **SHARED_HEADS[type_name(head)]}


def twin_backbone(backbone: dict, package: str | None = None) -> dict:
    """The backbone's config with SE, its weights left out; ``package`` is the one whose ResNet a bare type means."""
    arguments = {k: v for k, v in backbone.items() if k not in ('init_cfg', 'pretrained')}
    return {**_left_out(backbone, backbone['type'].rpartition('.')[0] or package), **arguments, **twin_type(backbone)}


def _left_out(backbone: dict, package: str | None) -> dict:
    """The package's defaults of the arguments that a config leaves out, where those of its twin differ."""
    own = defaults_of(NETWORKS[type_name(twin_type(backbone))])
    own['stem_channels'] = backbone.get('base_channels', own['base_channels'])
    defaults = DEFAULTS.get(package, {})
    return {k: v for k, v in defaults.items() if k not in backbone and own.get(k, v) != v}


def _fitting(arguments: dict) -> dict:
    block, _ = NETWORKS[type_name(arguments)].arch_settings[arguments['depth']]
    arguments = {**defaults_of(SEResNeXt), **arguments}
    arguments['base_width'] = arguments['width_per_group'] or arguments['base_width']
    arguments['stem_channels'] = arguments['stem_channels'] or arguments['base_channels']
    arguments['expansion'] = arguments['expansion'] or block.expansion
    return {key: arguments[key] for key in FITTING}


def _have_units_of(head: dict, backbone: dict) -> bool:
    """Whether a backbone with SE has the units of a shared head, which are those of an ordinary ResNet."""
    if type_name(backbone) != 'SEResNet':
        return False
    ordinary, has = _fitting(dict(type='SEResNet', depth=head['depth'])), _fitting(backbone)
    return all(has[key] == ordinary[key] for key in ('depth', 'avg_down', 'base_channels', 'expansion'))


def weights_for(backbone: dict) -> dict | None:
    """The released weights of lowest top-1 error that a backbone with SE can load by name, None if there are none.

    Weights of another rounding of the stem's pool count: the entry's arguments say so. All released weights are of
    batch norm and plain convolutions.
    """
    norm = (backbone.get('norm_cfg') or {}).get('type', 'BN')
    if backbone.get('conv_cfg') or 'BN' not in norm:
        return None
    kind = type_name(backbone)
    fitting = [
        entry
        for entry in released()
        if '://' in entry['checkpoint']
        and entry['arguments']['type'] == kind
        and _fitting(entry['arguments']) == _fitting(backbone)
    ]
    return min(fitting, key=lambda entry: entry['error'][0], default=None)


def named_weights(name: str, backbone: dict) -> dict | None:
    """The entry of released weights, None if a file or a name that is not in the list.

    Raises:
        InputError: it is of another network than the backbone, or of another variant of SE.
    """
    entry = next((entry for entry in released() if entry['checkpoint'] == name), None)
    if entry is None:
        return None
    kind, have = type_name(backbone), _fitting(backbone)
    same_kind = entry['arguments']['type'] == kind
    need = _fitting(entry['arguments']) if same_kind else {}
    different = sorted(key for key, value in need.items() if key != 'style' and value != have[key])
    if different or not same_kind:
        has = ', '.join(f'{key}={have[key]}' for key in different) or 'its arguments'
        raise InputError(f'weights {name} are for {entry["arguments"]}, not for {kind} with {has}')
    if 'se_cfg' in backbone:
        raise InputError(f'weights {name} are of standard SE: leave out --variant, or give weights of your own')
    return entry


def twin_config(cfg: Config, *, weights: str | None = None, variant: str = 'standard') -> tuple[dict, list[str]]:
    """What to change in a config so that its plain backbones have SE, and what to beware of.

    Args:
        cfg: config of a detector, classifier or other model.
        weights: checkpoint of the backbone, as ``init_cfg`` takes it; 'none' for random weights, None to choose
            released ones.
        variant: of SE; only the standard one has released weights.

    Returns:
        The changed keys as nested dicts, and warnings.

    Raises:
        InputError: no such variant; a config of classes or of an unknown package; no plain backbone, or one inside
            a list, which no config can change in part; released weights of another network.
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
        raise InputError(f'{cfg.filename}: its model has no backbone of type {", ".join(TWINS)}')
    twin = _Twin(cfg)
    if cfg.get('load_from'):
        twin.changes['load_from'] = None
        twin.warnings.append(f'load_from: {cfg.load_from} is of the model without SE and left out')
    for path, plain in found:
        twin.change_backbone(('model', *path), plain, weights, variant)
    for path, plain, backbone in shared_heads(model):
        if backbone in dict(found):
            twin.change_shared_head(('model', *path), plain, ('model', *backbone))
    return twin.changes, twin.warnings


class _Twin:
    """Changes of a config, as nested dicts, and warnings, as they are collected backbone by backbone."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.changes: dict = {}
        self.warnings: list[str] = []

    def change_backbone(self, path: tuple, plain: dict, weights: str | None, variant: str) -> None:
        """Change the plain backbone at ``path`` of the config."""
        name = '.'.join(map(str, path))
        if any(isinstance(key, int) for key in path):
            raise InputError(f'{self.cfg.filename}: {name} is in a list, which a config cannot change in part')
        scope = plain['type'].rpartition('.')[0] or self.cfg.get('default_scope')
        if scope not in (None, *DEFAULTS):
            raise InputError(
                f'{self.cfg.filename}: {name} is of {scope}; known are the ResNets of {", ".join(DEFAULTS)}'
            )
        complete = {**_left_out(plain, scope), **plain}
        change = {**deepcopy(twin_type(plain)), **{k: v for k, v in complete.items() if k not in plain}}
        if variant != 'standard':
            change['se_cfg'] = dict(variant=variant)
        if 'pretrained' in plain:
            change['pretrained'] = None
        pretrained = is_pretrained(plain.get('init_cfg')) or plain.get('pretrained') or self.cfg.get('load_from')
        pretrained = self._drop_weights_of_parents(path) or pretrained

        entry = None
        if weights:
            entry = named_weights(weights, {**complete, **change})
        elif pretrained and variant == 'standard':
            entry = weights_for({**complete, **change})
        checkpoint = weights or (entry and entry['checkpoint'])
        if checkpoint in (None, 'none'):
            why = 'as asked for' if weights else 'there are no released weights of this network' if pretrained else None
            self._start_at_random(name, complete, change, why)
        else:
            self._start_from(checkpoint, entry, path, complete, change)
        self._set(path, change)
        self._warn_of_small_batches(name, {**dict(norm_eval=True), **complete, **change})

    def change_shared_head(self, path: tuple, plain: dict, backbone: tuple) -> None:
        """Change the plain shared head at ``path``; it goes on where the backbone, at another path, ends."""
        name, before, after = '.'.join(map(str, path)), _at(self.cfg, backbone), _at(self.changes, backbone)
        self._drop_weights_of_parents(path, first=len(backbone))
        change = dict(SHARED_HEADS[type_name(plain)])
        if 'se_cfg' in after:
            change['se_cfg'] = after['se_cfg']
        if 'pretrained' in plain:
            change['pretrained'] = None
        weights = after.get('init_cfg')
        if weights and _have_units_of(plain, {**before, **after}):
            style = {'style': 'pytorch', **before, **after}['style']
            if style != plain.get('style', 'pytorch'):
                change['style'] = style
            change['init_cfg'] = dict(type='Pretrained', checkpoint=weights['checkpoint'])
            if 'init_cfg' in plain:
                change['init_cfg']['_delete_'] = True
            if not is_pretrained(plain.get('init_cfg')) and not plain.get('pretrained'):
                self.warnings.append(f'{name} starts from {weights["checkpoint"]}; without SE, it starts at random')
        else:
            why = f'{weights["checkpoint"]} has other units' if weights else None
            self._start_at_random(name, dict(frozen_stages=-1, **plain), change, why)
        self._set(path, change)

    def _drop_weights_of_parents(self, path: tuple, first: int = 1) -> bool:
        """Leave out weights without SE that parts around a module would load into it; whether there are any.

        Args:
            path: of the module.
            first: number of keys of the outermost part's path.
        """
        found = False
        for end in range(first, len(path)):
            owner = _at(self.cfg, path[:end])
            if owner.get('pretrained'):  # mmsegmentation hands it to the backbone
                self._set(path[:end], dict(pretrained=None))
                found = True
            if is_pretrained(owner.get('init_cfg')):  # would be loaded over the backbone's own
                self._set(path[:end], dict(init_cfg=None))
                place = '.'.join(map(str, path[:end]))
                self.warnings.append(f'{place}.init_cfg: its checkpoint is of the model without SE and left out')
                found = True
        return found

    def _start_at_random(self, name: str, complete: dict, change: dict, why: str | None) -> None:
        if complete.get('init_cfg'):
            change['init_cfg'] = None
        learning = dict(norm_eval=False, frozen_stages=-1)
        stuck = {k: v for k, v in learning.items() if {'norm_eval': True, **complete}.get(k, v) != v}
        if (complete.get('norm_cfg') or {}).get('requires_grad') is False:
            stuck['norm_cfg'] = dict(requires_grad=True)
        change |= stuck
        if why or stuck:
            settings = ', '.join(f'{k}={v}' for k, v in stuck.items())
            reason = f', {why}' if why else ''
            consequence = f'; the twin sets {settings}, or else frozen layers would never learn' if stuck else ''
            self.warnings.append(f'{name} starts at random weights{reason}{consequence}')

    def _start_from(self, checkpoint: str, entry: dict | None, path: tuple, complete: dict, change: dict) -> None:
        name = '.'.join(map(str, path))
        change['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
        if 'init_cfg' in complete:
            change['init_cfg']['_delete_'] = True
        if entry:
            unwritten = dict(style='pytorch', stem_pool_ceil_mode=False)
            expected, given = unwritten | entry['arguments'], unwritten | complete
            change |= {k: expected[k] for k in unwritten if expected[k] != given[k]}
            self._set_images(path, IMAGES[entry['images']])
            return
        self.warnings.append(
            f'{name}: {checkpoint} is not in the list of released weights: compare data_preprocessor with that of '
            'its training'
        )
        if complete.get('frozen_stages', -1) > 0:
            self.warnings.append(
                f'{name}: {complete["frozen_stages"]} stages are frozen; if {checkpoint} has no SE, set '
                "frozen_stages=0 and init_cfg.fresh_se='identity'"
            )

    def _set_images(self, path: tuple, images: dict) -> None:
        """Override the normalisations of the parts around a backbone, or else the config's, where they differ."""
        places = [(*path[:end], 'data_preprocessor') for end in range(1, len(path))]
        places += [(*place, 'data_preprocessor') for place in places]  # inside that of teacher and student
        places = [place for place in places if _normalises(self.cfg, place)] or [('data_preprocessor',)]
        for place in filter(lambda place: _normalises(self.cfg, place), places):
            part = _at(self.cfg, place)
            rgb = 'to_rgb' if 'to_rgb' in part or place == ('data_preprocessor',) else 'bgr_to_rgb'
            given = {key: list(value) if key in ('mean', 'std') else value for key, value in part.items()}
            expected = dict(images, **{rgb: True})
            different = {key: value for key, value in expected.items() if given.get(key) != value}
            if different:
                self._set(place, different)

    def _warn_of_small_batches(self, name: str, backbone: dict) -> None:
        images = (self.cfg.get('train_dataloader') or {}).get('batch_size')
        batch_norm = (backbone.get('norm_cfg') or {}).get('type', 'BN') == 'BN'
        if batch_norm and not backbone['norm_eval'] and images in (1, 2):
            self.warnings.append(
                f'{name}: batch norm learns from {images} image{"s" * (images - 1)} a GPU: consider '
                "norm_cfg=dict(type='SyncBN'), or pretrained weights with norm_eval=True"
            )

    def _set(self, path: tuple, value: dict) -> None:
        changes = self.changes
        for key in path:
            changes = changes.setdefault(key, {})
        changes.update(value)


def _at(cfg: Config, path: tuple) -> object:
    for key in path:
        cfg = cfg[key]
    return cfg


def _normalises(cfg: Config, place: tuple) -> bool:
    for key in place:
        cfg = cfg.get(key) if isinstance(cfg, dict | Config) else None
    return isinstance(cfg, dict) and cfg.get('mean') is not None

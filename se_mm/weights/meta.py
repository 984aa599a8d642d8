"""What a checkpoint says of the network it holds, in its ``meta``: read as data, never run."""

from __future__ import annotations

import ast

# Residual networks of OpenMMLab, whose arguments mean the same as here.
RESIDUAL = ('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt', 'SEResNet', 'SEResNeXt', 'SENet')
LONGEST_CONFIG = 1 << 18  # characters, parsed in 2 seconds at most; usual configs have a tenth


def properties_in(meta: object, prefix: str) -> dict:
    """Attributes of a :class:`Format` that no tensor shows, from what a checkpoint says of itself.

    Args:
        meta: ``backbone`` and ``data_preprocessor`` if converted here, the text ``cfg`` if MMEngine trained it.
        prefix: of the backbone's names, which tells its place in the config.

    Returns:
        ``stem_pool_ceil_mode``, ``caffe_style``, ``normalisation`` and ``se``; an empty dict if the meta data do not
        say.
    """
    meta = meta if isinstance(meta, dict) else {}
    backbone, images = meta.get('backbone'), meta.get('data_preprocessor')
    if not isinstance(backbone, dict):
        cfg = written_config(meta.get('cfg'))
        model = backbone = cfg.get('model')
        parts = [part for part in prefix.split('.') if part not in ('', 'module')]
        for part in parts:
            backbone = backbone.get(part) if isinstance(backbone, dict) else None
        if not parts or not isinstance(backbone, dict):
            return {}
        images = model.get('data_preprocessor') or cfg.get('data_preprocessor')
    kind = str(backbone.get('type')).rpartition('.')[2]
    if kind not in RESIDUAL:
        return {}
    return dict(
        stem_pool_ceil_mode=bool(backbone.get('stem_pool_ceil_mode', kind == 'SENet')),
        caffe_style='always' if backbone.get('style') == 'caffe' else 'never',
        normalisation=_of_rgb(images),
        se=_options_of_se(backbone),
    )


def _options_of_se(backbone: dict) -> dict:
    options = backbone.get('se_cfg') if isinstance(backbone.get('se_cfg'), dict) else {}
    found = dict(se_position=backbone.get('se_position', 'standard'), squeeze=options.get('squeeze', 'avg'))
    activations = options.get('act_cfg')
    if isinstance(activations, list | tuple) and all(isinstance(part, dict) for part in activations):
        found['act_cfg'] = activations
    return found


def _of_rgb(images: object) -> dict | None:
    if not isinstance(images, dict) or not all(isinstance(images.get(k), list | tuple) for k in ('mean', 'std')):
        return None
    if not all(isinstance(number, int | float) for key in ('mean', 'std') for number in images[key]):
        return None
    rgb = images.get('bgr_to_rgb') or images.get('to_rgb')
    return {key: list(images[key])[:: 1 if rgb else -1] for key in ('mean', 'std')}


def written_config(text: object) -> dict:
    """The values of a config's text, without those that are no plain data; none of a text that is too long."""
    try:
        statements = ast.parse(text).body if isinstance(text, str) and len(text) <= LONGEST_CONFIG else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    config = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                config[statement.targets[0].id] = _plain_value(statement.value)
            except (ValueError, TypeError, RecursionError):
                continue
    return config


def _plain_value(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _plain_value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {ast.literal_eval(k): _plain_value(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain_value(part) for part in node.elts]
    return ast.literal_eval(node)

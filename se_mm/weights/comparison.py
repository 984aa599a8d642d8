"""How a checkpoint's tensors compare with those of a backbone."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

from se_mm.models import SEResLayer
from se_mm.models.architecture import (
    HIDDEN_SE,
    arguments_of,
    chosen_se,
    is_residual,
    misfits,
    misfits_of_stage,
)
from se_mm.utils import InputError

from .recognition import Weights

# Parts that no weights of another project have: they start afresh.
OWN_PARTS = re.compile(r'conv_offset|num_batches_tracked')
# Parts that no backbone has.
HEADS = re.compile(r'(head|fc|classifier|neck|last_linear|out|output|proj\w*)\.')
CONVOLUTION = re.compile(r'(^|\.)conv\d?\.weight$|^stem\.[06]\.weight$')
STEM = re.compile(r'(conv|bn|gn|in|ln|norm)1\.|stem\.')
STAGE = re.compile(r'(layer|stage)\d+\.')


class Comparison(NamedTuple):
    """Names of tensors by what becomes of them, and what to set in the config.

    Attributes:
        misfits: arguments of the backbone that the weights do not fit, see :func:`misfits`.
        fresh: the backbone's tensors that the checkpoint does not have.
        missing: those of ``fresh`` that it should have.
        shapes: tensors of both with different shapes.
        unexpected: the checkpoint's tensors that the backbone should have a place for.
        left_over: all of the checkpoint's tensors that the backbone has no place for.
    """

    misfits: list[str]
    fresh: list[str]
    missing: list[str]
    shapes: list[str]
    unexpected: list[str]
    left_over: list[str]


def expected_arguments(weights: Weights) -> dict:
    """Arguments that a residual network's weights need: those of their shapes and those that the format implies.

    Raises:
        InputError: a convolution has the shape of none, or a part of a network is missing.
    """
    format = weights.format
    try:
        arguments = arguments_of(weights.tensors)
    except (IndexError, KeyError, ValueError, ZeroDivisionError) as error:
        convs = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items() if CONVOLUTION.search(name)}
        odd = [f'{name} has shape {shape}' for name, shape in convs.items() if len(shape) != 4 or 0 in shape]
        raise InputError(
            f'checkpoint {weights.source} ({format.name}) holds no whole residual network: '
            f'{odd[0] if odd else "a convolution or an SE layer is incomplete"}. Copy or download the file again'
        ) from error
    if format.stem_pool_ceil_mode is not None:
        arguments['stem_pool_ceil_mode'] = format.stem_pool_ceil_mode
    if format.caffe_style is not None and 'layer1.0.conv3.weight' in weights.tensors:
        caffe = format.caffe_style == 'always' or (
            format.caffe_style == 'SE-ResNet' and arguments['type'] == 'SEResNet'
        )
        arguments['style'] = 'caffe' if caffe else 'pytorch'
    if format.se is not None and any(arguments['with_se']):
        arguments['se_position'] = format.se['se_position']
        arguments['se_cfg'] = {**arguments['se_cfg'], **chosen_se(format.se, HIDDEN_SE)}
    return arguments


def compare(weights: Weights, model: nn.Module) -> Comparison:
    """Compare a checkpoint's backbone with a model, of which nothing changes.

    Deformable convolutions' offsets and plugins may be missing, and SE beside weights of a plain network. Heads,
    and stages that the model does not have, may be left over. Of a shared head only the units of its stage are
    compared.
    """
    own, given = model.state_dict(), weights.tensors
    changes = []
    # Names that stay as they are may be of any network: only their tensors are compared.
    if weights.format.anchors and is_residual(given):
        expected = expected_arguments(weights)
        if not isinstance(model, SEResLayer):
            changes = misfits(model, expected)
        elif expected['type'] == 'SENet':
            raise InputError(
                f'checkpoint {weights.source} is of SENet-154, whose units no shared head has: give weights of '
                'SE-ResNet or SE-ResNeXt'
            )
        else:
            changes = misfits_of_stage(model, given, expected)

    fresh = [name for name in own if name not in given]
    surplus = [name for name in given if name not in own]
    stages = tuple(f'{stage}.' for stage in getattr(model, 'stage_names', ()))
    stage_alone = isinstance(model, SEResLayer)

    def may_be_fresh(name: str) -> bool:
        beside = stage_alone and not name.startswith(stages)
        fresh_se = 'se_layer' in name and not weights.have_se
        return bool(beside or OWN_PARTS.search(name) or fresh_se or _is_of_plugin(model, name))

    def may_be_left(name: str) -> bool:
        elsewhere = (STAGE.match(name) or stage_alone and STEM.match(name)) and not name.startswith(stages)
        return bool(HEADS.match(name) or name.endswith('num_batches_tracked') or elsewhere)

    beside = [name.removeprefix(weights.prefix) for name in weights.left_over if name.startswith(weights.prefix)]
    head = [f'{weights.format.head}.{name}' for name in weights.head]
    return Comparison(
        misfits=changes,
        fresh=fresh,
        missing=[name for name in fresh if not may_be_fresh(name)],
        shapes=[name for name, tensor in given.items() if name in own and tensor.shape != own[name].shape],
        unexpected=[name for name in surplus if not may_be_left(name)]
        + [name for name in beside if not HEADS.match(name)],
        left_over=weights.left_over + head + surplus,
    )


def _is_of_plugin(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to a plugin of a residual unit."""
    parts = name.split('.')
    if len(parts) <= 3:
        return False
    block = model.get_submodule('.'.join(parts[:2]))
    return any(parts[2] in names for names in getattr(block, 'plugin_names', {}).values())

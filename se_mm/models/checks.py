"""Checks of arguments that more than one network takes; each error names the choices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral


def check_whole(**numbers: int) -> None:
    """Check arguments (by name) that are whole numbers from 1."""
    for key, value in numbers.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f'{key}={value!r}: choose a whole number from 1')


def check_act_cfg(act_cfg: Sequence[dict]) -> None:
    """Check the configs of the activations of an SE layer."""
    pair = isinstance(act_cfg, Sequence) and len(act_cfg) == 2 and all(isinstance(cfg, dict) for cfg in act_cfg)
    if not pair:
        raise ValueError(f'act_cfg={act_cfg!r} of SE: give two configs, of the activation and of the gate')


def check_stages(
    num_stages: int, most: int, *, out_indices: Sequence[int] | None = None, **lists: Sequence | None
) -> None:
    """Check a number of stages, stages whose outputs are returned, and arguments (by name) with one entry for each.

    Raises:
        ValueError: naming all arguments that do not fit ``num_stages``.
    """
    if num_stages not in range(1, most + 1):
        raise ValueError(f'num_stages={num_stages!r}: choose 1 to {most}')
    entries = 'entry' if num_stages == 1 else 'entries'
    wrong = [
        f'{key}={tuple(value)} needs {num_stages} {entries}'
        for key, value in lists.items()
        if value is not None and len(value) != num_stages
    ]
    if out_indices is not None and not (out_indices and set(out_indices) <= set(range(num_stages))):
        wrong.append(f'out_indices={tuple(out_indices)} needs stages from 0 to {num_stages - 1}')
    if wrong:
        raise ValueError(f'num_stages={num_stages}: {"; ".join(wrong)}')


def check_stage_channels(stage_channels: Sequence[int] | None, num_stages: int) -> None:
    """Check channels of the stem and of each stage."""
    if stage_channels is None:
        return
    if len(stage_channels) != num_stages + 1:
        raise ValueError(
            f'stage_channels={list(stage_channels)} needs {num_stages + 1} entries, for the stem and each stage'
        )
    for width in stage_channels:
        check_whole(stage_channels=width)


def widths_of_units(
    mid_channels: Sequence[Sequence[int | Sequence[int]]] | None, units: Sequence[int], convs: int, groups: int = 1
) -> list[list[tuple[int, ...] | None]]:
    """Channels between the convolutions of each unit, by stage; None for those of the architecture.

    Args:
        mid_channels: for each stage one entry for each unit: a number, or one for each convolution but the last.
        units: number of units of each stage.
        convs: convolutions of a unit but the last.
        groups: of a unit's second convolution.

    Raises:
        ValueError: there are not as many entries as units, or an entry has not as many numbers, or such that are no
            multiples of ``groups``.
    """
    if mid_channels is None:
        return [[None] * number for number in units]
    check_stages(len(units), len(units), mid_channels=mid_channels)
    found = []
    for i, (stage, number) in enumerate(zip(mid_channels, units)):
        if len(stage) != number:
            raise ValueError(f'mid_channels[{i}]={list(stage)} needs {number} entries, one for each unit')
        widths = [(entry,) * convs if isinstance(entry, Integral) else tuple(entry) for entry in stage]
        for entry in widths:
            if len(entry) != convs:
                raise ValueError(f'mid_channels[{i}] has {entry}: give {convs} numbers for a unit, or one')
            for width in entry:
                check_whole(**{f'mid_channels[{i}]': width})
                if width % groups:
                    raise ValueError(f'mid_channels[{i}] has {width}, which is no multiple of groups={groups}')
        found.append(widths)
    return found


def check_block(style: str, expansion: int, bottleneck: bool) -> None:
    """Check the arguments of a residual unit."""
    if style not in ('pytorch', 'caffe'):
        raise ValueError(f"style={style!r}: choose 'pytorch' or 'caffe'")
    check_whole(expansion=expansion)
    if not bottleneck and expansion != 1:
        raise ValueError(f'expansion={expansion} needs bottlenecks: depths 18 and 34 have none')


def check_plugins(plugins: Sequence[dict] | None, positions: Sequence[str], num_stages: int) -> None:
    """Check where plugins shall stand in the units, and in which stages."""
    for plugin in plugins or ():
        if plugin.get('position') not in positions:
            raise ValueError(f'plugin position {plugin.get("position")!r}: choose one of {tuple(positions)}')
        check_stages(num_stages, num_stages, **{'plugin stages': plugin.get('stages')})


def checkpoint_init_cfg(pretrained: str | None, init_cfg: dict | list[dict] | None) -> dict | list[dict] | None:
    """The init_cfg that mmdet's deprecated ``pretrained`` stands for; ``init_cfg`` itself if it is None.

    Raises:
        TypeError: it is no path.
        ValueError: both are given.
    """
    if pretrained is None:
        return init_cfg
    if not isinstance(pretrained, str):
        raise TypeError(f'pretrained={pretrained!r}: give the path of a checkpoint, or None')
    if init_cfg is not None:
        raise ValueError('init_cfg and pretrained cannot be given at the same time')
    warnings.warn('pretrained is deprecated, use init_cfg=dict(type="Pretrained", checkpoint=...)', stacklevel=3)
    return dict(type='Pretrained', checkpoint=pretrained)

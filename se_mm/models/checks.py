"""Checks of arguments that more than one network takes; each error names the choices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence


def check_stages(num_stages: int, most: int, **lists: Sequence | None) -> None:
    """Check a number of stages, and arguments (by name) that have one entry for each."""
    if num_stages not in range(1, most + 1):
        raise ValueError(f'num_stages={num_stages!r}: choose 1 to {most}')
    for key, value in lists.items():
        if value is not None and len(value) != num_stages:
            raise ValueError(
                f'{key}={tuple(value)} has {len(value)} entries for num_stages={num_stages}: give {num_stages}'
            )


def check_block(style: str, expansion: int, bottleneck: bool) -> None:
    """Check the arguments of a residual unit."""
    if style not in ('pytorch', 'caffe'):
        raise ValueError(f"style={style!r}: choose 'pytorch' or 'caffe'")
    if not isinstance(expansion, int) or expansion < 1:
        raise ValueError(f'expansion={expansion!r}: choose a whole number from 1')
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

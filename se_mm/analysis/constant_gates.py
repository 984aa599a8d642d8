"""Gates that need not be computed: what the analysis of a network's gates found to be static or idle."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from se_mm.utils import InputError

from .excitation_page import file_stem
from .gate_bank import MEAN, ONE
from .gates import weights_digest


def constant_gates(folder: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Gates to put in place of SE layers: mean gates for layers with the verdict static, ones for idle layers.

    Args:
        folder: that tools/analyze_excitation.py has written, for one network.
        model: the network, with its weights.

    Returns:
        Gates (C,), float64, by path of the SE layer in the model; those come first whose replacement costs least.

    Raises:
        InputError: the folder holds no analysis, an analysis of several networks, one without verdicts, one of other
            weights, or one in which no layer is static or idle.
    """
    path = Path(folder, 'excitation.json')
    try:
        networks = json.loads(path.read_text(encoding='utf-8'))
        roles = [{layer: verdict['role'] for layer, verdict in network['verdicts'].items()} for network in networks]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path} cannot be read ({error!r}): give a folder of tools/analyze_excitation.py') from error
    if len(networks) != 1:
        raise InputError(f'{path} has {len(networks)} networks: analyse the network to deploy alone, without --compare')
    (network,), (roles,) = networks, roles
    if not roles:
        raise InputError(f'{path} has no verdicts: run tools/analyze_excitation.py on images with labels')
    arrays = path.with_name(f'{file_stem(network["network"])}.npz')
    try:
        statistics = np.load(arrays, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f'{arrays} cannot be read ({error}): it stands beside {path.name}') from error
    weights = weights_digest(model)
    for file, own in ((path, network.get('weights_sha256')), (arrays, statistics.get('weights'))):
        if own is None or str(own) != weights:
            raise InputError(
                f'{file} is of other weights: run tools/analyze_excitation.py on the checkpoint that is given here'
            )
    paths = {layer['name']: layer['path'] for layer in network['layers']}
    means = {name: torch.from_numpy(statistics[f'{name}/mean'][0]) for name in roles}
    losses = {
        layer['name']: {gates: layer.get(f'{gates}_loss', 0.0) for gates in (ONE, MEAN)} for layer in network['layers']
    }
    found = {name: ONE if role == 'idle' else MEAN for name, role in roles.items() if role in ('idle', 'static')}
    if not found:
        raise InputError(
            f'{path} calls no SE layer static or idle: none can be folded away. More images (--worth-images) may '
            'decide what is undecided'
        )
    for remark in network.get('remarks', ()):
        print_log(f'{path}: {remark}', 'current', logging.WARNING)
    return {
        paths[name]: means[name] if gates == MEAN else torch.ones_like(means[name])
        for name, gates in sorted(found.items(), key=lambda item: losses[item[0]][item[1]])
    }

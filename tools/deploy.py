"""Prepare a trained model for inference: the same results, with less work.

    python tools/deploy.py CONFIG CHECKPOINT OUT.pth

Batch norms of the backbone, and of a shared head of this package, are folded into the convolutions before them. SE
squeezes before the last convolution of a unit where that is the same. Neck and other heads stay as they are. OUT gets
the weights of the whole model, and a config beside OUT, with the suffix .py, inherits from CONFIG and loads them in
all tools. The model cannot be trained afterwards.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis.constant_gates import constant_gates
from se_mm.conversion import by_unit, check_inheritable, features, inherited_config, largest_difference, save_weights
from se_mm.engine import guard
from se_mm.engine.inference import build_whole_model, prepared_images
from se_mm.engine.weight_checks import check_checkpoint
from se_mm.models import SECNN
from se_mm.models.base import Backbone
from se_mm.utils import InputError, written_whole
from se_mm.utils.config import load_config
from se_mm.weights import fetch

BACKBONE, SHARED_HEAD = 'backbone', 'roi_head.shared_head'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('checkpoint', help='checkpoint of the whole model, a file or a name')
    parser.add_argument('out', type=Path, help='file to write, .safetensors or .pth')
    parser.add_argument(
        '--constant-gates',
        type=Path,
        metavar='DIR',
        help='folder that analyze_excitation.py has written for the checkpoint: SE layers that it found to be static '
        'or idle are folded away, too',
    )
    parser.add_argument(
        '--images', nargs='+', default=[], metavar='IMAGE', help='to compare features on [two of random numbers]'
    )
    parser.add_argument(
        '--tolerance', type=float, default=1e-4, help='largest difference of features, of the largest value [1e-4]'
    )
    return parser.parse_args()


def networks_of(args, model):
    """The parts of a model that can be deployed, by path."""
    backbone = getattr(model, BACKBONE, None)
    if not isinstance(backbone, Backbone):
        raise InputError(f'{args.config}: its backbone {type(backbone).__name__} is none of this package')
    if backbone.deployed:
        raise InputError(f'{args.config} is of a deployed model already')
    head = getattr(getattr(model, 'roi_head', None), 'shared_head', None)
    return {BACKBONE: backbone, **({SHARED_HEAD: head} if isinstance(head, Backbone) else {})}


def sample_inputs(args, cfg, model):
    """Batches of images for the backbone."""
    if args.images:
        return prepared_images(cfg, model, args.images)
    channels = cfg.model.backbone.get('in_channels', 3)
    size = 32 if isinstance(model.backbone, SECNN) else 224  # the network's fully connected layers take no other
    return [torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))]


def sample_regions(head):
    """Regions of random numbers for a shared head."""
    first = next(module for module in head.modules() if isinstance(module, torch.nn.Conv2d))
    return [torch.randn(4, first.in_channels, 14, 14, generator=torch.Generator().manual_seed(0))]


def gates_of(args, model):
    """Constant gates by path of the SE layer in the backbone."""
    if args.constant_gates is None:
        return {}
    found, prefix = constant_gates(args.constant_gates, model), f'{BACKBONE}.'
    if others := [path for path in found if not path.startswith(prefix)]:
        raise InputError(f'{args.constant_gates}: {others[0]} is no SE layer of the backbone')
    return {path.removeprefix(prefix): gates for path, gates in found.items()}


def table_of(path, report, network):
    table = Table('unit', 'norms folded', 'SE', 'what stays, and why', title=path)
    for unit in by_unit(report, network.stage_names):
        table.add_row(unit.name, f'{unit.folded} of {unit.norms}', unit.se or '-', unit.why)
    return table


def main():
    args = parse_args()
    if args.out.suffix not in ('.safetensors', '.pth'):
        raise InputError(f'{args.out}: give a file with the suffix .safetensors or .pth')
    config = args.out.with_suffix('.py')
    for path in (args.out, config):
        if path.exists():
            raise InputError(f'{path} is already there: give another name')
    check_inheritable(args.config)
    cfg = load_config(args.config)
    model = build_whole_model(cfg)
    networks = networks_of(args, model)
    checkpoint = check_checkpoint(str(fetch(args.checkpoint)), model, training=False)
    gates = gates_of(args, model.eval())

    console, changes = Console(width=None if Console().is_terminal else 160), {}
    for path, network in networks.items():
        constant = gates if path == BACKBONE else {}
        inputs = sample_inputs(args, cfg, model) if path == BACKBONE else sample_regions(network)
        before = features(network, inputs)
        report = network.switch_to_deploy(constant)
        difference = largest_difference(before, features(network, inputs))
        console.print(table_of(path, report, network))
        print(f'largest difference of features: {difference:.1e} of the largest value')
        if not constant and not difference <= args.tolerance:
            raise InputError(f'{args.out} is not written: features differ by more than --tolerance {args.tolerance}')
        part = changes
        for key in path.split('.'):
            part = part.setdefault(key, {})
        part.update(deploy=True, init_cfg=None, **(dict(with_se=network.with_se) if constant else {}))

    meta = checkpoint.get('meta') or {}
    kept = {key: meta[key] for key in ('dataset_meta', 'epoch', 'iter', 'seed') if key in meta}
    save_weights(model.state_dict(), args.out, kept)
    with written_whole(config) as temporary:
        temporary.write_text(inherited_config(args.config, config, dict(model=changes)))
    print(f'written: {args.out}, {config}')


if __name__ == '__main__':
    with guard():
        main()

"""Make a trained network smaller: remove channels, or SE layers whose gates the network does not need.

    python tools/prune.py CONFIG CHECKPOINT OUT.pth --flops 0.5
    python tools/prune.py CONFIG CHECKPOINT OUT.pth --static DIR

OUT.py is an ordinary config that inherits from CONFIG and starts from OUT.pth; tools/train.py trains it further.
OUT.json has the numbers before and after. CONFIG's backbone is SEResNet, SEResNeXt, SENet or SEResNetCIFAR, with or
without SE, in a classifier or in a detector with a neck.
"""

import argparse
import copy
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis.complexity import input_size
from se_mm.analysis.constant_gates import constant_gates
from se_mm.analysis.cost import Measurement, interleave, quantiles, stored_bytes
from se_mm.conversion import check_inheritable, inherited_config, save_weights
from se_mm.conversion.importance import GATES, IMPORTANCES, importance
from se_mm.conversion.pruned import check_same, consumer_changes, forward_consumers
from se_mm.conversion.pruning import KINDS, Pruner, backbone_flops, check_torch_pruning, share_for, why_not_prunable
from se_mm.engine import check_config, guard
from se_mm.engine.arguments import ConfigOptions
from se_mm.engine.checks import check_data
from se_mm.engine.excitation import SPLITS, gate_data, score_of
from se_mm.engine.inference import build_whole_model
from se_mm.engine.pruning import add_gradients, evaluate, mean_gates, number_of_batches
from se_mm.engine.weight_checks import check_checkpoint
from se_mm.models.base import Backbone
from se_mm.models.deploy import FOLDED
from se_mm.models.se_layer import SELayer
from se_mm.utils import InputError, write_json, written_whole
from se_mm.utils.config import load_config
from se_mm.weights import fetch

PREFIX = 'backbone.'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('checkpoint', help='checkpoint of the whole model, a file or a name')
    parser.add_argument('out', type=Path, help='file to write, .pth or .safetensors')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--flops', type=float, metavar='SHARE', help="share of the backbone's multiply-adds to leave")
    what.add_argument(
        '--static',
        type=Path,
        metavar='DIR',
        help='folder that analyze_excitation.py has written for the checkpoint: SE layers that it found to be static '
        'or idle are folded away, those that cost least first, while the loss stays within --max-loss',
    )
    parser.add_argument(
        '--importance', choices=IMPORTANCES, default='l1', help='which channels stay; gates rank those of stages [l1]'
    )
    parser.add_argument('--round-to', type=int, default=8, metavar='N', help='numbers of channels are multiples of [8]')
    parser.add_argument('--keep', choices=KINDS, help='channels that stay: of the stages, or inside of units [none]')
    parser.add_argument(
        '--num-images', type=int, default=1000, metavar='N', help='images of the training, for gates and taylor [1000]'
    )
    parser.add_argument(
        '--max-loss', type=float, default=0.1, metavar='POINTS', help='of --static, in error or AP over --split [0.1]'
    )
    parser.add_argument('--split', choices=SPLITS, default='val', help='images that are evaluated [val]')
    parser.add_argument('--no-eval', action='store_true', help='do not evaluate before and after; not with --static')
    parser.add_argument('--seed', type=int, default=0, help='of the images that are drawn, and of random [0]')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='override CONFIG, but not in OUT.py'
    )
    args = parser.parse_args()
    if args.out.suffix not in ('.safetensors', '.pth'):
        parser.error(f'{args.out}: give a file with the suffix .safetensors or .pth')
    if args.flops is not None and not 0 < args.flops < 1:
        parser.error(f'--flops {args.flops}: give a share between 0 and 1')
    if min(args.round_to, args.num_images) < 1:
        parser.error('--round-to and --num-images start at 1')
    if args.static and args.no_eval:
        parser.error('--static evaluates the network: leave out --no-eval')
    return args


class Trained:
    """A config with its weights, and the images by which it is judged. What is wrong there is said before long work."""

    def __init__(self, args):
        self.cfg = load_config(args.config, args.cfg_options)
        checkpoint_file = str(fetch(args.checkpoint))
        self.model = build_whole_model(copy.deepcopy(self.cfg))
        if not isinstance(getattr(self.model, 'backbone', None), Backbone):
            raise InputError(f'{args.config} has no backbone of this package')
        self.checkpoint = check_checkpoint(checkpoint_file, self.model, training=False)
        self.model.eval()
        self.data, self.score = None, None
        if not args.no_eval:
            check_config(self.cfg, training=False, checkpoint=checkpoint_file)
            check_data(self.cfg, (args.split,))
            self.data = gate_data(self.cfg, split=args.split, seed=args.seed)
            self.score = score_of(self.cfg, self.data)
            if self.score is None:
                raise InputError(f'{args.config} has neither a top-1 error nor an AP: give --no-eval')

    def evaluated(self, model, what):
        with progress_bar(what, number_of_batches(len(self.data.places), self.cfg.test_dataloader.batch_size)) as step:
            return evaluate(model, self.cfg, self.data, self.score, step)

    def drawn(self, args, split='train'):
        """Images of the training."""
        return gate_data(self.cfg, split=split, images=args.num_images, seed=args.seed)


class progress_bar:
    """A function that advances a bar with an estimate of the time that is left."""

    def __init__(self, what, total):
        columns = TextColumn('{task.description}'), BarColumn(), TimeRemainingColumn()
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.task = self.progress.add_task(what, total=total)

    def __enter__(self):
        self.progress.start()
        return lambda: self.progress.advance(self.task)

    def __exit__(self, *_):
        self.progress.stop()


def example(cfg):
    """Two images for the backbone, large enough for all its stages."""
    channels = cfg.model.backbone.get('in_channels', 3)
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


def channel_importance(args, trained, pruner):
    """Of the pruner's model, by the data that it needs."""
    model, cfg, means = pruner.model, trained.cfg, {}
    size = cfg.train_dataloader.batch_size if cfg.get('train_dataloader') else 1
    if args.importance in GATES:
        data = trained.drawn(args)
        size = cfg.test_dataloader.batch_size
        with progress_bar('gates', number_of_batches(len(data.places), size)) as advance:
            found = mean_gates(model, cfg, data, advance)
        means = {path.removeprefix(PREFIX): mean for path, mean in found.items() if path.startswith(PREFIX)}
    if args.importance == 'taylor':
        with progress_bar('gradients', number_of_batches(args.num_images, size)) as advance:
            add_gradients(model, cfg, args.num_images, args.seed, advance)
    torch.manual_seed(args.seed)
    return importance(args.importance, pruner.network, means)


def pruned(args, trained):
    """A pruned copy of the model, and what the config has to change."""
    model, cfg = copy.deepcopy(trained.model), trained.cfg
    if why := why_not_prunable(model.backbone):
        raise InputError(f'{args.config} cannot be pruned: {why}')
    pruner = Pruner(model, forward_consumers, example(cfg), args.keep)
    backbone, shape = cfg.model.backbone.to_dict(), input_size(cfg)

    def flops_without(share):
        widths = pruner.widths(pruner.targets(share, args.round_to))
        return backbone_flops(dict(backbone, **widths.arguments()), shape)

    share = share_for(args.flops, backbone_flops(backbone, shape), flops_without)
    left = pruner.targets(share, args.round_to)
    before, after = pruner.widths({}), pruner.widths(left)
    pruner.prune(left, channel_importance(args, trained, pruner))
    old, new = ([widths.stages[i] for i in model.backbone.out_indices] for widths in (before, after))
    return model.eval(), dict(backbone=after.arguments(), **consumer_changes(cfg.model, old, new))


def without_static_gates(args, trained):
    """A copy of the model with fewer SE layers, and what the config has to change."""
    model, score, kept = copy.deepcopy(trained.model), trained.score, 0
    found = constant_gates(args.static)
    if others := [path for path in found if not path.startswith(PREFIX)]:
        raise InputError(f'{args.static}: {others[0]} is no SE layer of the backbone')
    own = trained.evaluated(model, 'as trained')
    for path, gates in found.items():
        trial = copy.deepcopy(model)
        try:
            (report,) = trial.backbone.fold_gates({path.removeprefix(PREFIX): gates})
        except ValueError as error:
            raise InputError(f'--static {args.static} is of another network: {error}') from error
        if report.done != FOLDED:
            print(f'{path} stays: {report.why}')
            continue
        loss = score.worth(trained.evaluated(trial, path), own).loss
        fits = loss <= args.max_loss
        print(f'{path} {"is folded away" if fits else "stays"}: {loss:+.2f} {score.unit} of {score.name} in all')
        if fits:
            model, kept = trial, kept + 1
    if not kept:
        raise InputError(f'{args.out} is not written: no SE layer can be folded away within --max-loss {args.max_loss}')
    return model, dict(backbone=dict(with_se=model.backbone.with_se))


def rebuilt(args, cfg, model, changes):
    """The model of the changed config, with the weights of a pruned one."""
    config = copy.deepcopy(cfg)
    config.merge_from_dict(dict(model=changes))
    new = build_whole_model(config).eval()
    check_same(new, model, example(cfg), args.config)
    return new


def measured(args, trained, models):
    """Numbers of models by name, the first of which the others are compared with."""
    shape = input_size(trained.cfg)
    images = torch.rand(1, trained.cfg.model.backbone.get('in_channels', 3), *shape)
    steps = {}
    for name, model in models.items():
        steps[name] = Measurement(model.eval(), lambda model=model: model.backbone(images), images.device)
    seconds = interleave(steps, repeats=10, warmup=2)
    rows = {}
    for name, model in models.items():
        backbone = model.backbone
        layers = sum(isinstance(module, SELayer) for module in backbone.modules())
        row = rows[name] = dict(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            backbone_flops=backbone_flops(model.backbone_cfg, shape),
            se_layers=layers,
        )
        trained_on = copy.deepcopy(backbone).train().requires_grad_(True)
        row['stored_bytes'] = stored_bytes(trained_on, lambda network=trained_on: network(images))
        row['latency_ms'] = quantiles([1e3 * one['step'] for one in seconds[name]], digits=3).p50
        if trained.score:
            row[trained.score.name] = trained.score.value(trained.evaluated(model, name))
    return rows


def table_of(rows, shape):
    before, after = rows.values()
    titles = dict(
        parameters='parameters of the model, M',
        backbone_flops=f'multiply-adds of the backbone at {shape[0]}x{shape[1]}, G',
        se_layers='SE layers',
        stored_bytes='activations that a training step stores, MB',
        latency_ms='time of the backbone for one image, ms',
    )
    divisors = dict(parameters=1e6, backbone_flops=1e9, stored_bytes=2**20)
    table = Table('', 'before', 'after', 'after / before')
    for key, value in before.items():
        divisor = divisors.get(key, 1)
        shown = [str(n) if isinstance(n, int) and divisor == 1 else f'{n / divisor:.3f}' for n in (value, after[key])]
        ratio = f'{after[key] / value:.3f}' if key in titles and value else ''
        table.add_row(titles.get(key, f'{key}, percent'), *shown, ratio)
    return table


def main():
    args = parse_args()
    paths = args.out, args.out.with_suffix('.py'), args.out.with_suffix('.json')
    for path in paths:
        if path.exists():
            raise InputError(f'{path} is already there: give another name')
    if args.flops:
        check_torch_pruning()
    check_inheritable(args.config)
    trained = Trained(args)
    model, changes = pruned(args, trained) if args.flops else without_static_gates(args, trained)
    after = rebuilt(args, trained.cfg, model, changes)
    before = trained.model
    before.backbone_cfg = trained.cfg.model.backbone.to_dict()
    after.backbone_cfg = dict(before.backbone_cfg, **changes['backbone'])
    rows = measured(args, trained, dict(before=before, after=after))
    Console(width=None if Console().is_terminal else 160).print(table_of(rows, input_size(trained.cfg)))

    meta = trained.checkpoint.get('meta') or {}
    save_weights(after.state_dict(), args.out, {key: meta[key] for key in ('dataset_meta',) if key in meta})
    weights = f'{{{{ fileDirname }}}}/{args.out.name}'
    replaces = dict(_delete_=True) if 'init_cfg' in trained.cfg.model.backbone else {}
    changes['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=weights, prefix=PREFIX, **replaces)
    with written_whole(paths[1]) as temporary:
        temporary.write_text(inherited_config(args.config, paths[1], dict(model=changes, load_from=weights)))
    write_json(paths[2], dict(config=args.config, checkpoint=args.checkpoint, changes=changes, **rows))
    print(f'written: {", ".join(map(str, paths))}')


if __name__ == '__main__':
    with guard():
        main()

"""Make a trained network smaller: remove channels, or SE layers whose gates the network does not need.

    python tools/prune.py CONFIG CHECKPOINT OUT.pth --flops 0.5
    python tools/prune.py CONFIG CHECKPOINT OUT.pth --static DIR

OUT.py is an ordinary config that inherits from CONFIG and starts from OUT.pth; tools/train.py trains it further.
OUT.json has the numbers before and after. Channels are removed from SEResNet, SEResNeXt, SENet and SEResNetCIFAR, with
or without SE, in classifiers and detectors.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from mmengine.device import get_device
from rich.console import Console
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis.comparison import signed
from se_mm.analysis.complexity import input_size
from se_mm.analysis.constant_gates import constant_gates
from se_mm.analysis.cost import Measurement, interleave, quantiles, stored_bytes
from se_mm.conversion import check_inheritable, inherited_config, save_weights
from se_mm.conversion.importance import GATES, IMPORTANCES, check_importance, importance
from se_mm.conversion.pruned import check_same, consumer_changes, forward_consumers, why_stages_stay
from se_mm.conversion.pruning import (
    KINDS,
    STAGES,
    Pruner,
    check_torch_pruning,
    multiply_adds,
    share_for,
    smaller_multiply_adds,
    why_not_prunable,
)
from se_mm.engine import check_config, guard
from se_mm.engine.arguments import ConfigOptions
from se_mm.engine.checks import check_data
from se_mm.engine.excitation import SPLITS, gate_data, score_of
from se_mm.engine.inference import build_whole_model
from se_mm.engine.progress import progress_bar
from se_mm.engine.pruning import add_gradients, evaluate, mean_gates, number_of_batches
from se_mm.engine.weight_checks import check_checkpoint
from se_mm.models.base import Backbone
from se_mm.models.deploy import FOLDED
from se_mm.models.se_layer import SELayer
from se_mm.utils import InputError, errors_name, write_json, written_whole
from se_mm.utils.config import load_config
from se_mm.weights import fetch

PREFIX = 'backbone.'
OF_FLOPS = dict(importance='l1', round_to=8, keep=None, num_images=1000)  # options of --flops alone, and their defaults


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
    parser.add_argument('--importance', choices=IMPORTANCES, help='of --flops: what ranks channels [l1]')
    parser.add_argument('--round-to', type=int, metavar='N', help='of --flops: channels are multiples of N [8]')
    parser.add_argument('--keep', choices=KINDS, help='of --flops: channels that stay, of stages or inside of units')
    parser.add_argument(
        '--num-images', type=int, metavar='N', help='of --flops: images of the training, for gates and taylor [1000]'
    )
    parser.add_argument(
        '--max-loss', type=float, default=0.1, metavar='POINTS', help='of --static: in error or AP over --split [0.1]'
    )
    parser.add_argument('--split', choices=SPLITS, default='val', help='images that are evaluated [val]')
    parser.add_argument('--no-eval', action='store_true', help='do not evaluate before and after; not with --static')
    parser.add_argument('--seed', type=int, default=0, help='of the images that are drawn, and of random [0]')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='override CONFIG, but not in OUT.py'
    )
    args = parser.parse_args()
    for option, default in OF_FLOPS.items():
        if args.static and getattr(args, option) is not None:
            parser.error(f'--{option.replace("_", "-")} belongs to --flops: leave it out')
        if getattr(args, option) is None:
            setattr(args, option, default)
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
        model = build_whole_model(copy.deepcopy(self.cfg))
        if not isinstance(getattr(model, 'backbone', None), Backbone):
            raise InputError(f'{args.config} has no backbone of this package')
        if model.backbone.deployed:
            raise InputError(f'{args.config} is of a deployed model: give the model as it was trained')
        self.checkpoint = check_checkpoint(checkpoint_file, model, training=False)
        self.model = model.to(get_device()).eval()
        self.shape = input_size(self.cfg)
        self.channels = self.cfg.model.backbone.get('in_channels', 3)
        self.data, self.score, self.answers = None, None, {}
        if args.flops and args.importance in GATES:
            self._check_splits(args, 'train', 'test')  # the test's pipeline prepares images
        elif args.flops and args.importance == 'taylor':
            self._check_splits(args, 'train')
        if not args.no_eval:
            check_config(self.cfg, training=False, checkpoint=checkpoint_file)
            self._check_splits(args, args.split, 'test')
            self.data = gate_data(self.cfg, split=args.split, seed=args.seed)
            self.score = score_of(self.cfg, self.data)
            if self.score is None:
                remedy = '--static needs one of them' if args.static else 'give --no-eval'
                raise InputError(f'{args.config} has neither a top-1 error nor an AP: {remedy}')

    def _check_splits(self, args, *splits):
        for split in splits:
            if not self.cfg.get(f'{split}_dataloader'):
                raise InputError(f'{args.config} has no {split}_dataloader')
        check_data(self.cfg, splits[:1])

    def example(self):
        """Two images for the backbone."""
        size = [min(edge, 224) for edge in self.shape]
        return torch.randn(2, self.channels, *size, generator=torch.Generator().manual_seed(0)).to(get_device())

    def evaluated(self, model, what):
        """What the score has to remember of a model, see :func:`evaluate`."""
        with progress_bar(what, self.data.number_of_batches()) as advance:
            return evaluate(model, self.data, self.score, advance)

    def built(self, args, changes):
        """The model that OUT.py builds with some changes, and the text of OUT.py."""
        weights = f'{{{{ fileDirname }}}}/{args.out.name}'
        backbone = self.cfg.model.backbone
        start = dict(type='Pretrained', checkpoint=weights, prefix=PREFIX)
        if 'init_cfg' in backbone:
            start['_delete_'] = True
        changes = dict(changes, backbone=dict(changes['backbone'], init_cfg=start))
        if 'pretrained' in backbone:
            changes['backbone'].update(pretrained=None)
        with errors_name(args.out.parent), tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
            path = Path(folder, 'config.py')
            path.write_text(inherited_config(args.config, path, dict(model=changes, load_from=weights)))
            model = build_whole_model(load_config(path)).to(get_device())
        return model, inherited_config(args.config, args.out, dict(model=changes, load_from=weights))


def pruned(args, trained):
    """The smaller model, and the text of its config."""
    cfg, shape, model = trained.cfg, trained.shape, copy.deepcopy(trained.model)
    if why := why_not_prunable(model.backbone):
        raise InputError(f'{args.config} cannot be pruned: {why}')
    if args.keep != STAGES and (why := why_stages_stay(model)):
        raise InputError(f'{args.config} cannot be pruned: {why}; give --keep stages')
    check_importance(args.importance, model.backbone, args.keep)
    pruner = Pruner(model, forward_consumers, trained.example(), args.keep)

    def flops_without(share):
        widths = pruner.widths(pruner.targets(share, args.round_to))
        return smaller_multiply_adds(cfg.model.backbone.to_dict(), widths, shape)

    share = share_for(args.flops, multiply_adds(trained.model.backbone, shape, trained.channels), flops_without)
    left = pruner.targets(share, args.round_to)
    before, after = pruner.widths({}), pruner.widths(left)
    old, new = ([widths.stages[i + 1] for i in model.backbone.out_indices] for widths in (before, after))
    changes = dict(backbone=after.arguments(), **consumer_changes(cfg.model, old, new))

    trial = copy.deepcopy(trained.model)  # whether all parts follow is known before gates or gradients are gathered
    rehearsal = Pruner(trial, forward_consumers, trained.example(), args.keep)
    rehearsal.prune(rehearsal.targets(share, args.round_to), importance('l1', trial.backbone, {}))
    built, text = trained.built(args, changes)
    check_same(built, trial, trained.example(), args.config)

    pruner.prune(left, channel_importance(args, trained, pruner))
    check_same(built, model.eval(), trained.example(), args.config)
    return built, text


def channel_importance(args, trained, pruner):
    """Of the pruner's model, by the data that it needs."""
    model, cfg, means = pruner.model, trained.cfg, {}
    if args.importance in GATES:
        data = gate_data(cfg, split='train', images=args.num_images, seed=args.seed)
        with progress_bar('gates', data.number_of_batches()) as advance:
            found = mean_gates(model, data, advance)
        means = {path.removeprefix(PREFIX): mean for path, mean in found.items() if path.startswith(PREFIX)}
    if args.importance == 'taylor':
        with progress_bar('gradients', number_of_batches(args.num_images, cfg.train_dataloader.batch_size)) as advance:
            add_gradients(model, cfg, args.num_images, args.seed, advance)
    torch.manual_seed(args.seed)
    return importance(args.importance, pruner.network, means)


def without_static_gates(args, trained):
    """The model with fewer SE layers, and the text of its config."""
    model, score = copy.deepcopy(trained.model), trained.score
    found = constant_gates(args.static, trained.model)
    if others := [path for path in found if not path.startswith(PREFIX)]:
        raise InputError(f'{args.static}: {others[0]} is no SE layer of the backbone')
    own = trained.answers['before'] = trained.evaluated(model, 'as trained')
    for path, gates in found.items():
        trial = copy.deepcopy(model)
        (report,) = trial.backbone.fold_gates({path.removeprefix(PREFIX): gates})
        if report.done != FOLDED:
            print(f'{path} stays: {report.why}')
            continue
        answers = trained.evaluated(trial, path)
        loss = score.worth(answers, own).loss
        fits = loss <= args.max_loss
        print(f'{path} {"is folded away" if fits else "stays"}: {signed(loss, 2)} {score.unit} of {score.name} in all')
        if fits:
            model, trained.answers['after'] = trial, answers
    if 'after' not in trained.answers:
        raise InputError(f'{args.out} is not written: no SE layer can be folded away within --max-loss {args.max_loss}')
    built, text = trained.built(args, dict(backbone=dict(with_se=model.backbone.with_se)))
    check_same(built, model, trained.example(), args.config)
    return built, text


def measured(trained, models):
    """Numbers of the models before and after."""
    images = torch.rand(1, trained.channels, *trained.shape, device=get_device())
    steps = {
        name: Measurement(model.eval(), lambda network=model.backbone: network(images), images.device)
        for name, model in models.items()
    }
    seconds = interleave(steps, repeats=10, warmup=2)
    rows = {}
    for name, model in models.items():
        learning = copy.deepcopy(model.backbone).train()
        rows[name] = dict(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            backbone_flops=multiply_adds(model.backbone, trained.shape, trained.channels),
            se_layers=sum(isinstance(module, SELayer) for module in model.backbone.modules()),
            stored_bytes=stored_bytes(learning, lambda network=learning: network(images)),
            latency_ms=quantiles([1e3 * one['step'] for one in seconds[name]], digits=3).p50,
        )
        if trained.score:
            answers = trained.answers.get(name) or trained.evaluated(model, name)
            rows[name][trained.score.name] = trained.score.value(answers)
    return rows


def table_of(rows, shape):
    titles = dict(
        parameters=('parameters of the model, M', 1e6),
        backbone_flops=(f'multiply-adds of the backbone at {shape[0]}x{shape[1]}, G', 1e9),
        se_layers=('SE layers', 1),
        stored_bytes=('activations that a training step stores, MB', 2**20),
        latency_ms=('time of the backbone for one image, ms', 1),
    )
    table = Table('', 'before', 'after', 'after / before')
    for key, before in rows['before'].items():
        after, (title, divisor) = rows['after'][key], titles.get(key, (f'{key}, percent', 1))
        shown = [str(n) if key == 'se_layers' else f'{n / divisor:.3f}' for n in (before, after)]
        table.add_row(title, *shown, f'{after / before:.3f}' if key in titles and before else '')
    return table


def main():
    args = parse_args()
    out, config, numbers = paths = args.out, args.out.with_suffix('.py'), args.out.with_suffix('.json')
    for path in paths:
        if path.exists():
            raise InputError(f'{path} is already there: give another name')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'{out.parent} cannot be made: {error.strerror}') from error
    if args.flops:
        check_torch_pruning()
    check_inheritable(args.config)
    trained = Trained(args)
    model, text = pruned(args, trained) if args.flops else without_static_gates(args, trained)
    rows = measured(trained, dict(before=trained.model, after=model))
    Console(width=None if Console().is_terminal else 160).print(table_of(rows, trained.shape))

    meta = trained.checkpoint.get('meta') or {}
    try:
        save_weights(model.cpu().state_dict(), out, {key: meta[key] for key in ('dataset_meta',) if key in meta})
        with written_whole(config) as temporary:
            temporary.write_text(text)
        write_json(numbers, dict(config=args.config, checkpoint=args.checkpoint, **rows))
    except BaseException:  # all three or none
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    print(f'written: {", ".join(map(str, paths))}')


if __name__ == '__main__':
    with guard():
        main()

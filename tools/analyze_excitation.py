"""Show what the gates of a network's SE layers do over a data set, and what they are worth.

    python tools/analyze_excitation.py CONFIG CHECKPOINT

Statistics (npz, CSV, JSON), pictures (PNG, SVG) and a page, excitation.html, are written into a folder. Ctrl-C ends
the analysis; what was gathered so far is written.
"""

import argparse
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

from mmengine.device import get_device
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis.excitation import Analysis, measure_gates, study_worth
from se_mm.analysis.excitation_page import write_analysis
from se_mm.analysis.gate_statistics import GateStatistics
from se_mm.analysis.gate_worth import Bank, cases
from se_mm.analysis.gates import gate_layers
from se_mm.engine import check_config, guard, init_distributed, once_per_machine
from se_mm.engine.arguments import ConfigOptions, parse_arguments
from se_mm.engine.excitation import SPLITS, gate_data, score_of
from se_mm.engine.weight_checks import check_checkpoint
from se_mm.utils import InputError, errors_name
from se_mm.utils.config import build_model, load_config, use_scope
from se_mm.weights import fetch


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('checkpoint', help='checkpoint of the whole model')
    parser.add_argument(
        '--compare', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='a second network, on the same page'
    )
    parser.add_argument('--out-dir', type=Path, help='folder of everything that is written [./work_dirs/CONFIG]')
    parser.add_argument('--split', choices=SPLITS, default='test', help='images of which data loader [test]')
    parser.add_argument('--num-images', type=int, metavar='N', help='at most N images, drawn at random [all]')
    parser.add_argument('--images-per-class', type=int, metavar='N', help='at most N images of each class [all]')
    parser.add_argument('--groups', type=Path, metavar='FILE.csv', help='further groups: columns image and group')
    parser.add_argument('--layers', nargs='+', metavar='NAME', help='SE layers, e.g. SE_2_3, or paths of modules [all]')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='classes that pictures show [four]')
    parser.add_argument('--channels', type=int, default=50, metavar='N', help='channels that pictures show [50]')
    parser.add_argument('--low', type=float, default=0.1, help='gates below count as closed [0.1]')
    parser.add_argument('--high', type=float, default=0.9, help='gates above count as open [0.9]')
    parser.add_argument('--no-worth', action='store_true', help='leave out the evaluations with other gates')
    parser.add_argument(
        '--worth-images', type=int, default=1000, metavar='N', help='images of the evaluations with other gates [1000]'
    )
    parser.add_argument(
        '--tolerance', type=float, default=0.5, help='points of error or AP that count as no difference [0.5]'
    )
    parser.add_argument(
        '--specific',
        type=float,
        default=0.1,
        help='share of variance between classes, beyond chance, of class-specific gates [0.1]',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the drawing of images [0]')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='override the config'
    )
    parser.add_argument(
        '--unsafe-pickle',
        action='store_true',
        help='DANGEROUS: let checkpoints run whatever code they hold, if you trust whoever wrote them',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    args = parse_arguments(parser)
    for option in ('num_images', 'images_per_class', 'channels', 'worth_images'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f'--{option.replace("_", "-")} {value}: choose a whole number from 1')
    if not args.low < args.high:
        raise InputError(f'--low {args.low} has to be below --high {args.high}')
    return args


class Interrupted(Exception):
    """Ctrl-C, when something has been gathered."""


@contextmanager
def progress_bar(what, total):
    """A function that advances a bar with an estimate of the time that is left."""
    columns = TextColumn('{task.description}'), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not is_main_process()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


class Network:
    """A config with a checkpoint, ready to run.

    The model and the data are built, and the weights are loaded; what is wrong there is said before long work.
    """

    def __init__(self, config, checkpoint, args):
        self.cfg = load_config(config, args.cfg_options)
        checkpoint = str(fetch(checkpoint))
        if not self.cfg.get('env_cfg'):
            self.cfg.env_cfg = {}
        init_distributed(self.cfg, args.launcher)
        once_per_machine(lambda: check_config(self.cfg, training=False, checkpoint=checkpoint))
        use_scope(self.cfg)
        if 'data_preprocessor' in self.cfg:  # as MMEngine's runner does
            self.cfg.model.setdefault('data_preprocessor', self.cfg.data_preprocessor)
        self.model = build_model(self.cfg)
        self.layers = gate_layers(self.model, args.layers)
        check_checkpoint(checkpoint, self.model, training=False)
        self.model.to(get_device()).eval()
        self.data = gate_data(
            self.cfg,
            split=args.split,
            images=args.num_images,
            images_per_class=args.images_per_class,
            groups_file=args.groups,
            seed=args.seed,
        )
        self.data.check_classes(args.classes or [])
        self.few = self.data.some(args.worth_images)
        self.score = None if args.no_worth else score_of(self.cfg, self.data.dataset)

    def batches(self, data, advance=lambda: None):
        """Pairs of a batch and the groups of its images."""
        loader, groups = data.loader(self.cfg, get_rank(), get_world_size())
        for pair in zip(loader, groups):
            yield pair
            advance()

    def step(self, pair):
        return self.model.test_step(pair[0])


def analyze(network, name, args):
    """Everything about a network; Interrupted carries what is there."""
    size = network.cfg.test_dataloader.batch_size * get_world_size()
    thresholds = (args.low, args.high)
    names = [layer.name for layer in network.layers]
    analysis = Analysis(
        name, GateStatistics(network.data.groupings, thresholds, {layer.name: layer.path for layer in network.layers})
    )
    bank = Bank()
    try:
        with progress_bar(f'{name}: gates', -(-len(network.data.places) // size)) as advance:
            measure_gates(
                network.model,
                network.batches(network.data, advance),
                members=lambda pair: pair[1],
                step=network.step,
                names=names,
                bank=bank,
                into=analysis.statistics,
            )
        first, *others = all_gather_object(analysis.statistics)
        for other in others:
            first.merge(other)
        analysis.statistics = first
        if network.score and len(network.few.places) > 1:
            batches = -(-len(network.few.places) // size)
            with progress_bar(f'{name}: other gates', batches * (1 + len(cases(network.layers)))) as advance:
                study_worth(
                    analysis,
                    network.model,
                    network.batches(network.few),
                    network.step,
                    network.score,
                    bank,
                    seed=args.seed,
                    gather=all_gather_object,
                    advance=advance,
                )
            analysis.judge(args.tolerance, args.specific)
    except KeyboardInterrupt:
        raise Interrupted(analysis) from None
    return analysis


def verdicts_table(analysis):
    table = Table('layer', 'mean', 'above --high', 'between classes', 'role', 'classes', title=analysis.name)
    for row in analysis.statistics.profile():
        share, verdict = row.eta_squared.get('class'), analysis.verdicts.get(row.name)
        between = f'{share.value:.3f} (chance {share.by_chance:.3f})' if share else '-'
        judged = (verdict.role, verdict.classes or '-') if verdict else ('-', '-')
        table.add_row(row.name, f'{row.mean:.3f}', f'{100 * row.high:.1f} %', between, *judged)
    return table


def main():
    args = parse_args()
    folder = args.out_dir or Path('work_dirs', Path(args.config).stem)
    pairs = [(args.config, args.checkpoint), *([args.compare] if args.compare else [])]
    networks = [Network(config, checkpoint, args) for config, checkpoint in pairs]
    folder.mkdir(parents=True, exist_ok=True)
    stems = [Path(config).stem for config, _ in pairs]
    if len(set(stems)) < len(stems):
        stems = [f'{stem} {Path(checkpoint).stem}' for stem, (_, checkpoint) in zip(stems, pairs)]
    analyses, remarks, interrupted = [], [], False
    for network, name in zip(networks, stems):
        try:
            analyses.append(analyze(network, name, args))
        except Interrupted as stop:
            (analysis,) = stop.args
            if not analysis.statistics.images:
                raise KeyboardInterrupt from None
            analyses.append(analysis)
            interrupted = True
            remarks.append(f'The analysis was interrupted after {analysis.statistics.images} images.')
            break
        if not network.score and not args.no_worth:
            remarks.append(f'{name} has neither a top-1 error nor a COCO AP: gates are not judged.')
        if analyses[-1].worth and network.score.is_chance(analyses[-1].own):
            remarks.append(f'{name} is no better than chance: its verdicts say nothing. Is the checkpoint trained?')
    if is_main_process():
        with errors_name(folder):
            page = write_analysis(
                analyses,
                folder,
                classes=None if interrupted else args.classes,
                channels=args.channels,
                split=args.split,
                tolerance=args.tolerance,
                command=shlex.join(['python', *sys.argv]),
                remarks=remarks,
            )
        console = Console(width=None if Console().is_terminal else 160)
        for analysis in analyses:
            console.print(verdicts_table(analysis))
        print('page:', page.resolve())
    if interrupted:
        raise KeyboardInterrupt


if __name__ == '__main__':
    with guard():
        main()

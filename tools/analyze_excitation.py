"""Show what the gates of a network's SE layers do over a data set, and what they are worth.

    python tools/analyze_excitation.py CONFIG CHECKPOINT

Statistics (npz, CSV, JSON), pictures (PNG, SVG) and a page, excitation.html, are written into a folder. Ctrl-C ends
the analysis after the current images; what was gathered so far is written. In a single process, a second Ctrl-C ends
the analysis at once.
"""

import argparse
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size, is_main_process
from rich.console import Console
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis.excitation import Analysis, gather_gates, worth_study
from se_mm.analysis.excitation_page import check_names, write_analysis, write_numbers
from se_mm.analysis.gate_bank import Bank
from se_mm.analysis.gate_statistics import GateStatistics
from se_mm.analysis.gate_worth import cases
from se_mm.analysis.gates import gate_layers
from se_mm.engine import check_config, guard, init_distributed, once_per_machine
from se_mm.engine.arguments import ConfigOptions, parse_arguments
from se_mm.engine.checks import check_data
from se_mm.engine.excitation import SPLITS, gate_data, score_of
from se_mm.engine.progress import progress_bar
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
    parser.add_argument(
        '--images-per-class', type=int, metavar='N', help='images until every class has N, drawn at random [all]'
    )
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
        help='share of variance, beyond chance, that classes explain of class-specific gates [0.1]',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the drawing of images [0]')
    parser.add_argument(
        '--channels-last', action='store_true', help='store maps with their channels last, which is faster'
    )
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
    if args.worth_images == 1:
        raise InputError('--worth-images 1: gates of other images need at least 2 images')
    if not args.low < args.high:
        raise InputError(f'--low {args.low} has to be below --high {args.high}')
    return args


class Interrupted(Exception):
    """Ends work between images after Ctrl-C."""


class Interruption:
    """Turns Ctrl-C into a question that is asked between images, so that no image counts by half.

    Launchers pass Ctrl-C on, so that processes get it twice: only a single process ends at once the second time.
    """

    def __init__(self):
        self.wanted = False
        self.usual = signal.signal(signal.SIGINT, self._want)

    def _want(self, *_):
        self.wanted = True
        if get_world_size() == 1:
            signal.signal(signal.SIGINT, self.usual)
        if is_main_process():
            print('interrupted: ends after the current images', file=sys.stderr)

    def check(self):
        if self.wanted:
            raise Interrupted

    def of_any_process(self):
        return any(all_gather_object(self.wanted))


class Network:
    """A config with a checkpoint, ready to run.

    The model and the data are built, and the weights are loaded; what is wrong there is said before long work.
    """

    def __init__(self, name, cfg, checkpoint, args):
        self.name, self.cfg = name, cfg
        checkpoint = str(fetch(checkpoint))
        once_per_machine(lambda: self._check(checkpoint, args.split))
        use_scope(cfg)
        if 'data_preprocessor' in cfg:  # as MMEngine's runner does
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        self.model = build_model(cfg)
        self.layers = gate_layers(self.model, args.layers)
        check_checkpoint(checkpoint, self.model, training=False)
        self.model.to(get_device()).eval()
        if args.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.data = gate_data(
            cfg,
            split=args.split,
            images=args.num_images,
            images_per_class=args.images_per_class,
            groups_file=args.groups,
            seed=args.seed,
        )
        self.data.check_classes(args.classes or [])
        self.few = self.data.some(args.worth_images)
        self.score = None if args.no_worth or len(self.few.places) < 2 else score_of(cfg, self.few)
        self.remarks = []
        if not self.score and not args.no_worth:
            self.remarks.append(
                f'The gates of {name} are not judged. Judging needs two images or more, and either one label an image, '
                'for the top-1 error, or the objects of one COCO file, for AP.'
            )

    def _check(self, checkpoint, split):
        check_config(self.cfg, training=False, checkpoint=checkpoint)  # with the data of the test
        if split != 'test':
            check_data(self.cfg, (split,))

    def batches(self, data, advance=lambda: None):
        for batch in data.batches(get_rank(), get_world_size()):
            yield batch
            advance()


def analyze(network, args, folder, interruption):
    """Gather gates of a network and evaluate the network with other gates, as far as Ctrl-C lets it."""
    paths = {layer.name: layer.path for layer in network.layers}
    statistics = GateStatistics(network.data.groupings, (args.low, args.high), paths)
    analysis = Analysis(network.name, statistics, remarks=list(network.remarks))
    bank = Bank.drawn(network.data.places, args.seed)
    with progress_bar(f'{network.name}: gates', network.data.number_of_batches(get_world_size())) as advance:
        _until_interrupted(
            lambda check: gather_gates(
                statistics, network.model, network.batches(network.data, check), network.model.test_step, bank
            ),
            interruption,
            advance,
        )
    statistics.reduce()
    if interruption.of_any_process():
        analysis.remarks.append(f'The analysis was interrupted after {statistics.images} images.')
        return analysis
    if is_main_process():
        with errors_name(folder):
            write_numbers(analysis, folder)
    if network.score:
        bank.merge(all_gather_object(bank))
        judge(network, analysis, bank, args, interruption)
    return analysis


def judge(network, analysis, bank, args, interruption):
    """Evaluate the network with other gates, and judge its layers."""
    study = worth_study(analysis, network.model, network.model.test_step, network.score, bank, args.seed)
    replacements = len(cases(network.layers))
    total = network.few.number_of_batches(get_world_size()) * (1 + replacements)
    with progress_bar(f'{network.name}: other gates', total) as advance:
        _until_interrupted(lambda check: study.run(network.batches(network.few), check), interruption, advance)
    study.merge(all_gather_object(study.state()))
    if interruption.of_any_process():
        analysis.remarks.append(f'The evaluations with other gates were interrupted after {len(study.own)} images.')
    if not is_main_process() or not study.own:
        return
    with progress_bar(f'{network.name}: intervals', replacements) as advance:
        analysis.take(study, advance)
    analysis.judge(args.tolerance, args.specific)
    if network.score.is_chance(analysis.own):
        analysis.remarks.append(
            f'{network.name} is no better than chance: its verdicts say nothing. Is the checkpoint trained?'
        )
    if network.score.worth(study.own, study.own).high > args.tolerance:
        more = 'more --worth-images' if len(network.few.places) < len(network.data.places) else 'more images'
        analysis.remarks.append(
            f'{analysis.images} images are too few to find gates of {network.name} idle or static: give {more}, or a '
            'higher --tolerance.'
        )


def _until_interrupted(work, interruption, advance):
    """Call ``work`` with a function that advances the bar and ends the work after Ctrl-C."""

    def check():
        advance()
        interruption.check()

    with suppress(Interrupted):
        work(check)


def verdicts_table(analysis):
    table = Table('layer', 'mean', 'above --high', 'between classes', 'role', 'classes', title=analysis.name)
    for row in analysis.statistics.profile():
        share, verdict = row.eta_squared.get('class'), analysis.verdicts.get(row.name)
        between = f'{share.value:.3f} (chance {share.by_chance:.3f})' if share else '-'
        judged = (verdict.role, verdict.classes or '-') if verdict else ('-', '-')
        table.add_row(row.name, f'{row.mean:.3f}', f'{100 * row.high:.1f} %', between, *judged)
    return table


def names_of(pairs):
    """Names of the configs, with as much of the checkpoints' paths as tells the networks apart."""
    stems = [Path(config).stem for config, _ in pairs]
    if len(set(stems)) == len(pairs):
        return stems
    paths = [Path(checkpoint).with_suffix('').parts for _, checkpoint in pairs]
    for length in range(1, max(map(len, paths)) + 1):
        names = [f'{stem} {"/".join(parts[-length:])}' for stem, parts in zip(stems, paths)]
        if len(set(names)) == len(pairs):
            return names
    raise InputError('--compare names the network that the command begins with: give another checkpoint')


def main():
    args = parse_args()
    folder = args.out_dir or Path('work_dirs', Path(args.config).stem)
    pairs = [(args.config, args.checkpoint), *([args.compare] if args.compare else [])]
    names = names_of(pairs)
    check_names(names)
    cfgs = [load_config(config, args.cfg_options) for config, _ in pairs]
    init_distributed(cfgs[0], args.launcher)
    networks = [
        Network(name, cfg, checkpoint, args) for name, cfg, (_, checkpoint) in zip(names, cfgs, pairs, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    interruption, analyses, page = Interruption(), [], None
    barrier()  # Ctrl-C would end a process that has not come so far, and all others wait for that process
    for network in networks:
        analysis = analyze(network, args, folder, interruption)
        if analysis.statistics.images:
            analyses.append(analysis)
        if is_main_process() and analyses:  # after each network, so that nothing depends on the next one
            with errors_name(folder):
                page = write_analysis(
                    analyses,
                    folder,
                    classes=None if interruption.wanted else args.classes,
                    channels=args.channels,
                    split=args.split,
                    tolerance=args.tolerance,
                    specific=args.specific,
                    command=shlex.join(['python', *sys.argv]),
                )
        if interruption.of_any_process():
            break
    if page:
        console = Console(width=None if Console().is_terminal else 160)
        for analysis in analyses:
            console.print(verdicts_table(analysis))
            for remark in analysis.remarks:
                console.print(remark)
        print('page:', page.resolve())
    if interruption.wanted:
        raise KeyboardInterrupt


if __name__ == '__main__':
    with guard():
        main()

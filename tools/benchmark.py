"""Time and memory of SE networks beside plain ones, in se_mm and in other projects.

Networks run in turn in one process, in a random order in every round; a ratio compares runs of
the same round. Parts: target, the figures this project aims at; variants, all implementations;
growth, over batch size, input size and depth; detector, a Faster R-CNN step on 800x1333;
deployed, inference of both networks after switch_to_deploy(); runtimes, the same by
onnxruntime and OpenVINO on the CPU, in float32 and int8.
On a GPU, the tests of the kernels come first, and target and deployed are measured with
torch.compile as well.
What is measured goes into OUT.csv; tables, OUT.png (overview) and OUT_details.png are made from
that file.
"""

import argparse
import platform
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil
import torch
from benchmarked import (
    deployed_networks,
    detector_measurement,
    exported,
    network_measurement,
    networks_elsewhere,
    networks_here,
    runtime_measurement,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import se_mm.mmcv_ext  # noqa: F401  operators, where mmcv has none: before mmdet
from se_mm.analysis import (
    Cost,
    Setting,
    clock,
    compare,
    cost_writer,
    draw_details,
    draw_overview,
    interleave,
    keep_freed_memory,
    quantiles,
    read_costs,
    save_figure,
)
from se_mm.analysis.cost_tables import cost_table, target_table
from se_mm.conversion.onnx_file import RUNTIMES, check_installed
from se_mm.engine import guard
from se_mm.engine.checks import check_compiler
from se_mm.ops import se_tail
from se_mm.utils import InputError, installed_versions
from se_mm.utils.config import build_model, load_config

PARTS = ('target', 'variants', 'growth', 'detector', 'deployed', 'runtimes')
ROOT = Path(__file__).resolve().parents[1]
CONFIGS, KERNEL_TESTS = ROOT / 'configs', ROOT / 'tests' / 'ops'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, help='[target detector; on a GPU target detector deployed]'
    )
    parser.add_argument('--out', default='work_dirs/benchmark', help='files without suffix [work_dirs/benchmark]')
    parser.add_argument('--batch-size', type=int, help='of training [8; on a GPU 128]')
    parser.add_argument('--size', type=int, default=224, help='of the square images [224]')
    parser.add_argument('--depth', type=int, default=50, help='of the networks [50]')
    parser.add_argument(
        '--repeats',
        type=int,
        default=10,
        help='rounds that are counted; in growth more of quick ones, fewer of slow ones [10]',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='variants, deployed: also with torch.compile; on a CPU with a C++ compiler',
    )
    parser.add_argument(
        '--channels-last', action='store_true', help='store maps with their channels last; on a GPU always so'
    )
    parser.add_argument('--plot', metavar='CSV', help='measure nothing, make tables and pictures of this file')
    return parser.parse_args()


class Benchmark:
    """The parts, and what they share: options, device, file and progress bar."""

    def __init__(self, args, device, write_cost, progress):
        self.args, self.device, self.write_cost, self.progress = args, device, write_cost, progress
        gpu = device.type == 'cuda'
        layout = 'channels_last' if gpu or args.channels_last else 'contiguous'
        self.format = dict(dtype='bfloat16' if gpu else 'float32', layout=layout)
        self.machine = dict(
            device=torch.cuda.get_device_name() if gpu else processor(),
            threads=torch.get_num_threads(),
            allocator='keeps freed memory' if keep_freed_memory(False) else 'default',
            versions=' '.join(f'{name}={version}' for name, version in installed_versions().items()),
        )

    def write(self, setting, variant, **values):
        machine = dict(self.machine, device=processor()) if setting.part.startswith(tuple(RUNTIMES)) else self.machine
        self.write_cost(Cost(**asdict(setting), variant=variant, **values, **machine))

    def compare(self, setting, measurements, warmup=2, repeats=None):
        """Measure networks in turn, the plain one first, and write what each costs."""
        repeats = repeats or self.args.repeats
        task = self.progress.add_task(' '.join(str(value) for value in asdict(setting).values() if value), total=None)
        self.progress.update(task, total=len(measurements) * (repeats + warmup))
        advance = partial(self.progress.advance, task)
        for name, values in compare(measurements, repeats=repeats, warmup=warmup, progress=advance).items():
            self.write(setting, name, **values)
        self.progress.remove_task(task)

    def measurements(self, setting, networks):
        layout = getattr(torch, 'channels_last' if setting.layout == 'channels_last' else 'contiguous_format')
        images = torch.rand(setting.batch, 3, setting.height, setting.width).to(self.device, memory_format=layout)
        built = {name: build().to(self.device, memory_format=layout) for name, build in networks.items()}
        return {name: network_measurement(model, images, setting) for name, model in built.items()}

    def run_networks(self, part, networks, compiled):
        args = self.args
        inference = args.batch_size if self.device.type == 'cuda' else 1
        for mode, batch in (('train', args.batch_size), ('inference', inference)):
            setting = Setting(
                part=part, mode=mode, batch=batch, height=args.size, width=args.size, depth=args.depth,
                compiled=compiled, **self.format,
            )  # fmt: skip
            torch.compiler.reset()
            self.compare(setting, self.measurements(setting, networks))

    def run_deployed(self, compiled):
        """Inference: deployed networks among themselves, and beside the plain network as it was trained."""
        networks, args = deployed_networks(self.args.depth), self.args
        parts = {'deployed': ('plain deployed', 'deployed'), 'deployed and trained': ('plain', 'fused', 'deployed')}
        for part, names in parts.items():
            for batch in (args.batch_size,) if self.device.type == 'cuda' else (1, 8):
                setting = Setting(
                    part=part, mode='inference', batch=batch, height=args.size, width=args.size, depth=args.depth,
                    compiled=compiled, **self.format,
                )  # fmt: skip
                torch.compiler.reset()
                self.compare(setting, self.measurements(setting, {name: networks[name] for name in names}), warmup=4)

    def run_runtimes(self):
        """Inference of one image by runtimes other than torch, of networks after switch_to_deploy()."""
        size = self.args.size
        images, networks = torch.rand(1, 3, size, size), deployed_networks(self.args.depth)
        for dtype in ('float32', 'int8'):
            contents = {
                name: exported(networks[name], images, dtype == 'int8') for name in ('plain deployed', 'deployed')
            }
            for runtime in RUNTIMES:
                setting = Setting(
                    part=runtime if dtype == 'float32' else f'{runtime} int8', mode='inference', batch=1, height=size,
                    width=size, depth=self.args.depth, dtype=dtype, layout='contiguous',
                )  # fmt: skip
                measured = {name: runtime_measurement(runtime, content, images) for name, content in contents.items()}
                self.compare(setting, measured, warmup=4)

    def run_growth(self):
        """Batch 1 to 256 at 224, input 112 to 800x1333 with one image, depth 18 to 152, as far as memory goes."""
        size, depth, batch = self.args.size, self.args.depth, self.args.batch_size
        batches = [(n, size, size, depth) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
        sizes = [(1, h, w, depth) for h, w in ((112, 112), (224, 224), (448, 448), (640, 640), (800, 1333))]
        depths = [(batch, size, size, d) for d in (18, 34, 50, 101, 152)]
        memory = torch.cuda.mem_get_info()[0] if self.device.type == 'cuda' else psutil.virtual_memory().available
        stored_per_pixel = None
        for point in dict.fromkeys(batches + sizes + depths):
            setting = Setting(
                part='growth', mode='train', **dict(zip(('batch', 'height', 'width', 'depth'), point)), **self.format
            )
            pixels, deeper = setting.batch * setting.height * setting.width, max(1, setting.depth / depth)
            if stored_per_pixel and 2 * pixels * stored_per_pixel * deeper > memory:
                self.write(setting, 'plain', remark='not measured: out of memory')
                continue
            measurements = self.measurements(setting, networks_here(setting.depth))
            if stored_per_pixel is None:
                stored_per_pixel = measurements['unfused'].memory()['stored_bytes'] / pixels
            quicker = batch * size**2 / pixels / deeper
            self.compare(setting, measurements, warmup=1, repeats=max(3, int(self.args.repeats * min(3, quicker))))

    def run_detector(self):
        measurements = {}
        for name, config, options in (
            ('plain', 'faster_rcnn_r50_coco.py', {}),
            ('fused', 'faster_rcnn_se_r50_coco.py', {}),
            ('unfused', 'faster_rcnn_se_r50_coco.py', {'model.backbone.fused_se': False}),
        ):
            cfg = load_config(CONFIGS / config, options)
            cfg.model.backbone.init_cfg = None
            torch.manual_seed(0)
            measurements[name] = detector_measurement(build_model(cfg).to(self.device), self.device)
        setting = Setting(
            part='detector', mode='train', batch=1, height=800, width=1333, depth=50,
            dtype='float32', layout='contiguous',
        )  # fmt: skip
        self.compare(setting, measurements)

    def run_tail(self):
        """Bytes a second that the passes of the tail alone read and write, against a copy on the GPU."""
        n, h = self.args.batch_size, self.args.size // 4
        x, identity, grad = (
            torch.randn(n, 256, h, h, device=self.device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
            for _ in range(3)
        )
        norm = nn.BatchNorm2d(256).to(self.device)
        inputs = x.clone().requires_grad_(), identity.clone().requires_grad_()

        def run_tail_once():
            torch.autograd.grad(se_tail(*inputs, norm, torch.sigmoid), (*inputs, *norm.parameters()), grad)

        # forward reads x twice and identity and writes out; backward reads grad, out, x, g, x and writes g, dx
        tasks = dict(copy=(2, x.clone), tail=(11, run_tail_once))

        def run_ten_times(task):
            start = clock(self.device)
            for _ in range(10):
                task()
            return dict(step=(clock(self.device) - start) / 10)

        steps = {name: partial(run_ten_times, task) for name, (_, task) in tasks.items()}
        rounds = interleave(steps, repeats=self.args.repeats, warmup=3)
        speed, copy = (
            tasks[name][0] * x.nbytes / quantiles([seconds['step'] for seconds in rounds[name]]).p50 / 1e9
            for name in ('tail', 'copy')
        )
        setting = Setting(
            part='tail', mode='train', batch=n, height=h, width=h, depth=self.args.depth, **self.format
        )  # fmt: skip
        self.write(setting, 'fused', gbytes_per_s=round(speed, 1), bandwidth_ratio=round(speed / copy, 3))


def processor():
    """Name of the CPU."""
    names = [line.split(':')[1] for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
    return names[0].strip() if names else platform.processor()


def check_kernels():
    """Run the tests of the kernels on this GPU: wrong kernels are not worth measuring.

    Raises:
        InputError: a test failed.
    """
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '--no-header', '-p', 'no:cacheprovider', str(KERNEL_TESTS)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise InputError(f'nothing is measured: {" ".join(command[1:])} failed on {torch.cuda.get_device_name()}')


def measure(args, path):
    """Run the parts that were asked for and write the file."""
    gpu = torch.cuda.is_available()
    args.parts = args.parts or ['target', 'detector', *(['deployed'] if gpu else [])]
    if args.compile:
        check_compiler('--compile')
    if 'runtimes' in args.parts:
        check_installed(*RUNTIMES)
    if gpu and KERNEL_TESTS.is_dir():  # a clone: an installed package has no tests
        check_kernels()
    args.batch_size = args.batch_size or (128 if gpu else 8)
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress, cost_writer(path) as write:
        benchmark = Benchmark(args, torch.device('cuda' if gpu else 'cpu'), write, progress)
        here = networks_here(args.depth)
        elsewhere = networks_elsewhere(args.depth) if 'variants' in args.parts else {}
        if 'target' in args.parts:
            pair = {name: here[name] for name in ('plain', 'fused')}
            for compiled in (False, True) if gpu else (False,):
                benchmark.run_networks('target', pair, compiled)
            if gpu:
                benchmark.run_tail()
        if 'detector' in args.parts:
            benchmark.run_detector()
        if 'variants' in args.parts:
            for compiled in (False, True) if args.compile else (False,):
                benchmark.run_networks('variants', here | elsewhere, compiled)
        if 'deployed' in args.parts:
            for compiled in (False, True) if gpu or args.compile else (False,):
                benchmark.run_deployed(compiled)
        if 'runtimes' in args.parts:
            benchmark.run_runtimes()
        if 'growth' in args.parts:
            benchmark.run_growth()


def main():
    args = parse_args()
    out = Path(args.plot).with_suffix('') if args.plot else Path(args.out)
    path = out.with_name(f'{out.name}.csv')
    if not args.plot:
        measure(args, path)
    costs = read_costs(path)
    console = Console(width=150)
    console.print(target_table(costs))
    console.print(cost_table(costs))
    written = [path]
    for draw, name in ((draw_overview, f'{out.name}.png'), (draw_details, f'{out.name}_details.png')):
        if (figure := draw(costs)) is not None:
            written.append(out.with_name(name))
            save_figure(figure, written[-1])
    console.print(', '.join(map(str, written)))


if __name__ == '__main__':
    with guard():
        main()

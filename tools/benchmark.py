"""Time and memory of SE networks beside plain ones, ours and others'.

Variants run in turn in one process, in a random order in every round; a ratio compares runs of
the same round. Parts: target, the figures this project aims at; variants, all implementations;
growth, over batch size, input size and depth; detector, a Faster R-CNN step on 800x1333.
Rows end in OUT.csv; tables and OUT.png are made from that file.
"""

import argparse
import csv
import ctypes
import os
import platform
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

import se_mm  # noqa: F401  registers the backbones
from se_mm.analysis import clock, draw_costs, interleave, kept_bytes, quantiles
from se_mm.analysis.plot import name_of, number
from se_mm.engine import guard
from se_mm.models import SEResNet
from se_mm.ops import se_tail
from se_mm.utils import InputError, installed_versions
from se_mm.utils.config import build_model, load_config

PARTS = ('target', 'variants', 'growth', 'detector')
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
KEYS = ('part', 'variant', 'compiled', 'mode', 'batch', 'height', 'width', 'depth', 'dtype', 'layout')
QUANTITIES = ('forward', 'backward', 'step')
COLUMNS = [
    *KEYS,
    *(f'{quantity}_{unit}_p{p}' for quantity in QUANTITIES for unit in ('ms', 'ratio') for p in (20, 50, 80)),
    *('kept_bytes', 'kept_ratio', 'peak_bytes', 'peak_ratio', 'gbytes_per_s', 'bandwidth_ratio', 'remark'),
    *('device', 'threads', 'allocator', 'versions'),
]
# What is to be reached (figure, part, mode, on a GPU, compiled, column, limit) and what others cost.
TARGETS = [
    ('activations kept for backward', 'target', 'train', False, False, 'kept_ratio', 1.01, '1.26'),
    ('CPU training step', 'target', 'train', False, False, 'step_ratio_p50', 1.03, '1.12 to 1.31'),
    ('CPU inference, batch 1', 'target', 'inference', False, False, 'step_ratio_p50', 1.02, '1.04 to 1.09'),
    ('GPU training step', 'target', 'train', True, False, 'step_ratio_p50', 1.00, '1.20 to 1.40'),
    ('GPU training step, compiled', 'target', 'train', True, True, 'step_ratio_p50', 1.05, ''),
    ('GPU inference', 'target', 'inference', True, False, 'step_ratio_p50', 1.03, '1.15 to 1.25'),
    ('bandwidth of the tail, of a copy', 'tail', 'train', True, False, 'bandwidth_ratio', 0.75, ''),
    ('Faster R-CNN step, time', 'detector', 'train', None, False, 'step_ratio_p50', 1.02, ''),
    ('Faster R-CNN step, memory', 'detector', 'train', None, False, 'kept_ratio', 1.01, ''),
]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=['target', 'detector'], help='[target detector]')
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
    parser.add_argument('--compile', action='store_true', help='variants: also with torch.compile')
    parser.add_argument('--plot', metavar='CSV', help='measure nothing, make tables and picture of this file')
    return parser.parse_args()


def backbones(depth):
    """All implementations that have this depth, plain ResNet first."""
    import timm
    from mmdet.models import ResNet
    from mmpretrain.models import ResNet as MMPretrainResNet
    from mmpretrain.models import SEResNet as MMPretrainSEResNet

    found = dict(
        plain=lambda: ResNet(depth, norm_eval=False),
        fused=lambda: SEResNet(depth, norm_eval=False),
        unfused=lambda: SEResNet(depth, norm_eval=False, fused_se=False),
    )
    found['mmpretrain plain'] = lambda: MMPretrainResNet(depth, out_indices=(0, 1, 2, 3))
    if depth in MMPretrainSEResNet.arch_settings and depth >= 50:
        found['mmpretrain SE'] = lambda: MMPretrainSEResNet(depth, out_indices=(0, 1, 2, 3))
    for name, model in (('timm plain', f'resnet{depth}'), ('timm SE', f'seresnet{depth}')):
        if timm.is_model(model):
            found[name] = partial(timm.create_model, model, num_classes=0, global_pool='')
    return found


class Measurement:
    """A network with an input: one call is a training step or an inference."""

    def __init__(self, model, x, train, compiled, precision):
        model.train(train)
        self.model, self.x, self.train, self.precision = model, x, train, precision
        self.run = torch.compile(model) if compiled else model
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9) if train else None

    def forward(self):
        """A loss, or in inference the outputs."""
        with torch.autocast('cuda', torch.bfloat16) if self.precision == 'bfloat16' else nullcontext():
            out = self.run(self.x)
            out = out[-1] if isinstance(out, tuple | list) else out
            return out.float().square().mean() if self.train else out

    def __call__(self):
        times = [clock(self.x.device)]
        with torch.set_grad_enabled(self.train):
            loss = self.forward()
        times.append(clock(self.x.device))
        if self.train:
            loss.backward()
            times.append(clock(self.x.device))
            self.optimizer.step()
            self.optimizer.zero_grad()
        end = clock(self.x.device)
        seconds = dict(zip(QUANTITIES, (b - a for a, b in zip(times, times[1:]))))
        return dict(seconds, step=end - times[0])

    def memory(self):
        """Bytes kept for backward, and on a GPU the peak of a step above what stood before."""
        result = dict(kept_bytes=kept_bytes(self.model, self.forward)) if self.train else {}
        if self.x.device.type == 'cuda':
            self()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()  # of all variants
            self()
            result['peak_bytes'] = torch.cuda.max_memory_allocated() - before
        return result


class DetectorMeasurement(Measurement):
    """Faster R-CNN with one image of 800x1333 and ten objects."""

    def __init__(self, model, device):
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        super().__init__(model, torch.rand(1, 3, 800, 1344).to(device), True, False, 'float32')
        corners = torch.rand(10, 2) * torch.tensor([900.0, 500.0])
        instances = InstanceData(bboxes=torch.cat([corners, corners + 250], 1), labels=torch.arange(10))
        shape = dict(img_shape=(800, 1333), pad_shape=(800, 1344), batch_input_shape=(800, 1344))
        sample = DetDataSample(metainfo=dict(shape, ori_shape=(800, 1333), scale_factor=(1.0, 1.0)))
        sample.gt_instances = instances
        self.samples = [sample.to(device)]

    def forward(self):
        torch.manual_seed(0)  # the same proposals are sampled in every step
        return self.model.parse_losses(self.model.loss(self.x, self.samples))[0]


class Report:
    """Rows in a CSV file, with the machine they were measured on."""

    def __init__(self, path, device, repeats, progress):
        self.path, self.device, self.repeats, self.progress = path, device, repeats, progress
        self.machine = dict(
            device=torch.cuda.get_device_name() if device.type == 'cuda' else processor(),
            threads=torch.get_num_threads(),
            allocator='keeps freed memory' if keep_freed_memory(False) else 'default',
            versions=' '.join(f'{name}={version}' for name, version in installed_versions().items()),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.with_name(f'.{path.name}').open('w', newline='')
        self.writer = csv.DictWriter(self.file, COLUMNS, restval='')
        self.writer.writeheader()

    def write(self, row):
        self.writer.writerow(dict(row, **self.machine))
        self.file.flush()

    def close(self):
        self.file.close()
        os.replace(self.file.name, self.path)

    def measure(self, keys, measurements, warmup=2, repeats=None):
        """Measure variants in turn; the first is what the others are compared with."""
        repeats = repeats or self.repeats
        task = self.progress.add_task(' '.join(str(v) for v in keys.values() if v), total=None)
        memory = {name: m.memory() for name, m in measurements.items()}  # compiles, too
        keep_freed_memory(True)
        self.progress.update(task, total=len(measurements) * (repeats + warmup))
        rounds = interleave(measurements, repeats, warmup, partial(self.progress.advance, task))
        base = next(iter(measurements))
        for name, seconds in rounds.items():
            row = dict(keys, variant=name, **memory[name])
            for key in ('kept', 'peak'):
                if f'{key}_bytes' in row:
                    row[f'{key}_ratio'] = round(row[f'{key}_bytes'] / memory[base][f'{key}_bytes'], 4)
            for quantity in seconds[0]:
                times = quantiles([1e3 * s[quantity] for s in seconds])
                ratios = quantiles([s[quantity] / b[quantity] for s, b in zip(seconds, rounds[base])])
                for p, time, ratio in zip((20, 50, 80), times, ratios):
                    row[f'{quantity}_ms_p{p}'], row[f'{quantity}_ratio_p{p}'] = round(time, 3), round(ratio, 4)
            self.write(row)
        keep_freed_memory(False)
        self.progress.remove_task(task)


def keep_freed_memory(keep):
    """Whether glibc keeps freed memory instead of giving it back to the system and asking for it again in every step,
    which costs a fifth of a training step, more or less at random, and would hide differences between networks. Not
    while compiling, whose many small objects would leave no large piece of kept memory whole.

    Returns:
        False where the C library has no such setting.
    """
    trim_threshold, mmap_max = -1, -4
    try:
        libc = ctypes.CDLL('libc.so.6')
        if keep:
            return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))
        libc.malloc_trim(0)
        return bool(libc.mallopt(mmap_max, 65536) and libc.mallopt(trim_threshold, 128 * 1024))
    except OSError:
        return False


def processor():
    """Name of the CPU."""
    names = [line.split(':')[1] for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
    return names[0].strip() if names else platform.processor()


def setting(part, device, mode, batch, height, width, depth, compiled=False):
    gpu = device.type == 'cuda'
    return dict(
        part=part, compiled=compiled, mode=mode, batch=batch, height=height, width=width, depth=depth,
        dtype='bfloat16' if gpu else 'float32', layout='channels_last' if gpu else 'contiguous',
    )  # fmt: skip


def measurements_of(keys, names, device):
    layout = getattr(torch, 'channels_last' if keys['layout'] == 'channels_last' else 'contiguous_format')
    x = torch.rand(keys['batch'], 3, keys['height'], keys['width']).to(device, memory_format=layout)
    built = {name: make() for name, make in backbones(keys['depth']).items() if name in names or not names}
    options = keys['mode'] == 'train', keys['compiled'], keys['dtype']
    return {name: Measurement(model.to(device, memory_format=layout), x, *options) for name, model in built.items()}


def run_networks(report, args, device, part, names=(), compiled=(False,)):
    inference = args.batch_size if device.type == 'cuda' else 1
    for compile_it in compiled:
        for mode, batch in (('train', args.batch_size), ('inference', inference)):
            keys = setting(part, device, mode, batch, args.size, args.size, args.depth, compile_it)
            torch.compiler.reset()
            report.measure(keys, measurements_of(keys, names, device))


def run_growth(report, args, device):
    """Batch 1 to 256 at 224, input 112 to 800x1333 with one image, depth 18 to 152, as far as memory goes."""
    batches = [(n, args.size, args.size, args.depth) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    sizes = [(1, h, w, args.depth) for h, w in ((112, 112), (224, 224), (448, 448), (640, 640), (800, 1333))]
    depths = [(args.batch_size, args.size, args.size, depth) for depth in (18, 34, 50, 101, 152)]
    if device.type == 'cuda':
        memory = torch.cuda.mem_get_info()[0]
    else:
        memory = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    per_pixel = None  # bytes kept for backward
    for point in dict.fromkeys(batches + sizes + depths):
        keys = setting('growth', device, 'train', *point)
        pixels = point[0] * point[1] * point[2]
        deeper = max(1, point[3] / args.depth)
        if per_pixel and 2 * pixels * per_pixel * deeper > memory:
            report.write(dict(keys, variant='plain', remark='not measured: out of memory'))
            continue
        measurements = measurements_of(keys, ('plain', 'fused', 'unfused'), device)
        if per_pixel is None:
            per_pixel = measurements['unfused'].memory()['kept_bytes'] / pixels
        usual = args.batch_size * args.size**2
        report.measure(
            keys, measurements, warmup=1, repeats=max(3, int(args.repeats * min(3, usual / pixels / deeper)))
        )


def run_detector(report, device):
    measurements = {}
    for name, config, options in (
        ('plain', 'faster_rcnn_r50_coco.py', {}),
        ('fused', 'faster_rcnn_se_r50_coco.py', {}),
        ('unfused', 'faster_rcnn_se_r50_coco.py', {'model.backbone.fused_se': False}),
    ):
        cfg = load_config(CONFIGS / config, options)
        cfg.model.backbone.init_cfg = None
        torch.manual_seed(0)
        measurements[name] = DetectorMeasurement(build_model(cfg).to(device), device)
    keys = dict(setting('detector', device, 'train', 1, 800, 1333, 50), dtype='float32', layout='contiguous')
    report.measure(keys, measurements)


def run_tail(report, args, device):
    """Bytes a second of the tail alone, read and written by its passes, against a copy on the GPU."""
    shape = (args.batch_size, 256, args.size // 4, args.size // 4)
    x, identity, grad = (
        torch.randn(shape, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last) for _ in range(3)
    )
    norm = nn.BatchNorm2d(256).to(device)
    inputs = x.clone().requires_grad_(), identity.clone().requires_grad_()

    def run_tail_once():
        torch.autograd.grad(se_tail(*inputs, norm, torch.sigmoid), (*inputs, *norm.parameters()), grad)

    # forward reads x twice and identity and writes out; backward reads grad, out, x, g, x and writes g, dx
    tasks = dict(copy=(2, x.clone), tail=(11, run_tail_once))

    def run_ten_times(task):
        start = clock(device)
        for _ in range(10):
            task()
        return dict(step=(clock(device) - start) / 10)

    steps = {name: partial(run_ten_times, task) for name, (_, task) in tasks.items()}
    rounds = interleave(steps, args.repeats, 3, lambda: None)
    speed, copy = (
        tasks[name][0] * x.nbytes / quantiles([r['step'] for r in rounds[name]])[1] / 1e9 for name in ('tail', 'copy')
    )
    keys = setting('tail', device, 'train', *shape[:1], *shape[2:], args.depth)
    report.write(dict(keys, variant='fused', gbytes_per_s=round(speed, 1), bandwidth_ratio=round(speed / copy, 3)))


def show(rows, console):
    """Tables of the targets and of everything measured."""
    gpu = bool(rows) and 'bfloat16' in {row['dtype'] for row in rows}
    table = Table('figure', 'others', 'to reach', 'measured', 'p20 to p80', '', title='SE against the plain network')
    for figure, part, mode, on_gpu, compiled, column, limit, others in TARGETS:
        found = [
            r
            for r in rows
            if (r['part'], r['variant'], r['mode'], r['compiled']) == (part, 'fused', mode, str(compiled))
        ]
        found = [r for r in found if on_gpu is None or on_gpu == gpu or column == 'kept_ratio']
        value = number(found[0], column) if found else None
        spread = ''
        if value is not None and column.endswith('p50'):
            spread = ' to '.join(f'{number(found[0], column.replace("p50", p)):.3f}' for p in ('p20', 'p80'))
        reached = value is not None and (value >= limit if column == 'bandwidth_ratio' else value <= limit)
        sign = 'at least' if column == 'bandwidth_ratio' else 'at most'
        shown = 'not measured' if value is None else f'{value:.3f}'
        verdict = '' if value is None else 'reached' if reached else 'missed'
        table.add_row(figure, others, f'{sign} {limit:.2f}', shown, spread, verdict)
    console.print(table)
    table = Table(
        'part', 'variant', 'mode', 'batch', 'input', 'depth', 'step, ms', 'forward', 'backward', 'step', 'kept'
    )
    for row in rows:
        ratios = [number(row, f'{q}_ratio_p50') for q in QUANTITIES] + [number(row, 'kept_ratio')]
        time = ' / '.join(row[f'step_ms_p{p}'] for p in (20, 50, 80)) if row['step_ms_p50'] else row['remark']
        cells = [f'{ratio:.3f}' if ratio else '' for ratio in ratios]
        network = row['part'], name_of(row), row['mode'], row['batch'], f'{row["height"]}x{row["width"]}', row['depth']
        table.add_row(*network, time, *cells)
    console.print(table)


def main():
    args = parse_args()
    out = Path(args.plot).with_suffix('') if args.plot else Path(args.out)
    path = out.with_name(f'{out.name}.csv')
    console = Console(width=150)
    if not args.plot:
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        args.batch_size = args.batch_size or (128 if device.type == 'cuda' else 8)
        progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        report = Report(path, device, args.repeats, progress)
        with progress:
            if 'target' in args.parts:
                gpu = device.type == 'cuda'
                run_networks(report, args, device, 'target', ('plain', 'fused'), (False, True) if gpu else (False,))
                if gpu:
                    run_tail(report, args, device)
            if 'detector' in args.parts:
                run_detector(report, device)
            if 'variants' in args.parts:
                run_networks(report, args, device, 'variants', (), (False, True) if args.compile else (False,))
            if 'growth' in args.parts:
                run_growth(report, args, device)
        report.close()
    if not path.is_file():
        raise InputError(f'{path} not found: give the CSV file that a run of this program wrote')
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise InputError(f'{path} is not a CSV file of this program: its columns differ or it is empty')
    show(rows, console)
    draw_costs(rows, out.with_name(f'{out.name}.png'))
    console.print(f'{path}, {out.name}.png')


if __name__ == '__main__':
    with guard():
        main()

"""Time mmcv's compiled operators and those of se_mm.mmcv_ext at the sizes of Faster R-CNN on an image of 800 x 1344.

Needs an mmcv with compiled operators. The two take turns, so that both see the same machine.
"""

import argparse
import sys
import time

import torch
from mmcv import _ext as compiled
from mmcv.ops import batched_nms, roi_align
from rich.console import Console
from rich.table import Table

from se_mm import mmcv_ext
from se_mm.utils import InputError

LEVELS = ((4, 200, 336), (8, 100, 168), (16, 50, 84), (32, 25, 42))  # strides and sizes of the feature pyramid
CHANNELS = 256


def boxes(number, generator):
    """As wide as proposals: half of them below 64 pixels."""
    start = torch.rand(number, 2, generator=generator) * torch.tensor([1344, 800])
    size = 32 * 2 ** (torch.rand(number, 2, generator=generator) * 4 - 1)
    return torch.cat([start, start + size], 1)


def suppress(number, iou_threshold, classes, generator):
    """NMS of each class."""
    x, scores = boxes(number, generator), torch.rand(number, generator=generator)
    labels = torch.randint(classes, (number,), generator=generator)
    return lambda: batched_nms(x, scores, labels, dict(type='nms', iou_threshold=iou_threshold))


def align(number, backward, generator):
    """RoIAlign of the level that suits each box."""
    maps = [torch.randn(1, CHANNELS, *size, generator=generator).requires_grad_(backward) for _, *size in LEVELS]
    x = boxes(number, generator)
    level = ((x[:, 2:] - x[:, :2]).prod(1).sqrt() / 56).log2().floor().long().clamp(0, 3)
    rois = [torch.cat([torch.zeros(int((level == i).sum()), 1), x[level == i]], 1) for i in range(4)]

    def run():
        for m, roi, (stride, *_) in zip(maps, rois, LEVELS, strict=True):
            pooled = roi_align(m, roi, 7, 1 / stride, 0, 'avg', True)
            if backward:
                pooled.backward(torch.ones_like(pooled))
                m.grad = None

    return run


CASES = {
    'NMS, 4693 proposals of 5 levels': lambda g: suppress(4693, 0.7, 5, g),
    'NMS, 1000 boxes of 80 classes': lambda g: suppress(1000, 0.5, 80, g),
    'RoIAlign, 1000 boxes': lambda g: align(1000, False, g),
    'RoIAlign, 512 boxes, with gradients': lambda g: align(512, True, g),
}


def milliseconds(run, extension):
    for module in ('nms', 'roi_align'):
        sys.modules[f'mmcv.ops.{module}'].ext_module = extension
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=15, help='times each is timed [15]')
    args = parser.parse_args()
    if compiled is mmcv_ext:
        raise InputError('mmcv has no compiled operators: there is nothing to compare')
    table = Table('operator', 'mmcv ms (20, 50, 80 %)', 'stand-in ms (20, 50, 80 %)', 'ratio of medians')
    for name, case in CASES.items():
        run = case(torch.Generator().manual_seed(0))
        times = {extension: [] for extension in (compiled, mmcv_ext)}
        for number in range(args.rounds + 1):
            for extension, values in times.items():
                value = milliseconds(run, extension)
                if number:  # the first warms up
                    values.append(value)
        quantiles = [torch.tensor(v).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist() for v in times.values()]
        ratio = quantiles[1][1] / quantiles[0][1]
        table.add_row(name, *(', '.join(f'{v:.1f}' for v in q) for q in quantiles), f'{ratio:.2f}')
    Console().print(table)
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads')


if __name__ == '__main__':
    main()

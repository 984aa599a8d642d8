"""Time training steps with options of tools/train.py that make them faster on CPUs, as docs/studies.md quotes them.

The options take turns, so that all see the same machine.
"""

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from se_mm.analysis import interleave, quantiles
from se_mm.models import SEResNet, SEResNetCIFAR
from se_mm.utils import installed_versions

NETWORKS = {
    'ResNet-20, 128, 32x32': (lambda se: SEResNetCIFAR(arch='resnet20', with_se=se), (128, 32), 64),
    'ResNet-18, 32, 96x96': (lambda se: SEResNet(18, out_indices=(3,), with_se=se), (32, 96), 512),
}
OPTIONS = {'usual': (False, False), '--channels-last': (True, False), '--channels-last --amp': (True, True)}


def step(build, se, shape, channels, last, amp):
    """A function that trains a classifier for one step and returns the seconds."""
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    batch, size = shape
    backbone = build(se).train().to(memory_format=layout)
    head = nn.Linear(channels, 10)
    images, labels = torch.rand(batch, 3, size, size), torch.arange(batch) % 10
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.01, momentum=0.9, nesterov=True)

    def train():
        start = time.perf_counter()
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            value = nn.functional.cross_entropy(head(backbone(images)[-1].mean((2, 3))), labels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return dict(seconds=time.perf_counter() - start)

    return train


def main():
    table = Table('network, batch, image', *(f'{name}, ms: p20, p50, p80' for name in OPTIONS))
    for name, (build, shape, channels) in track(NETWORKS.items()):
        for se in (False, True):
            steps = {option: step(build, se, shape, channels, *flags) for option, flags in OPTIONS.items()}
            rounds = interleave(steps, repeats=10, warmup=2)
            cells = [quantiles([1000 * r['seconds'] for r in found], digits=0) for found in rounds.values()]
            table.add_row(f'{"SE-" if se else ""}{name}', *(' / '.join(f'{v:.0f}' for v in cell) for cell in cells))
    Console(width=170).print(table)
    processor = next(line for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line)
    print(f'{processor.partition(": ")[2]}, {torch.get_num_threads()} threads:', installed_versions())


if __name__ == '__main__':
    main()

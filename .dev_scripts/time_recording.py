"""Time an evaluation that records gates beside one that does not, with SE-ResNet-50 on images of 224x224 pixels.

The two take turns, so that both see the same machine.
"""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from se_mm.analysis import GateRecorder, GateStatistics, interleave, keep_freed_memory, quantiles
from se_mm.models import SEResNet
from se_mm.utils import installed_versions

CLASSES = 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=15, help='times each is timed [15]')
    args = parser.parse_args()
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = SEResNet(50).to(device).eval()
    images = torch.randn(args.batch_size, 3, 224, 224, device=device)
    statistics = GateStatistics({'class': [str(i) for i in range(CLASSES)]})
    members = [[int(label)] for label in torch.randint(1, CLASSES + 1, (args.batch_size,))]

    def timed(step):
        def run():
            start = time.perf_counter()
            step()
            if device == 'cuda':
                torch.cuda.synchronize()
            return dict(seconds=time.perf_counter() - start)

        return run

    def plain():
        model(images)

    def recorded():
        with GateRecorder(model) as recorder:
            model(images)
            statistics.add(recorder.take(), members)

    keep_freed_memory(True)
    with torch.no_grad():
        rounds = interleave(dict(plain=timed(plain), recorded=timed(recorded)), repeats=args.rounds, warmup=2)
    ratios = [mine['seconds'] / own['seconds'] for mine, own in zip(rounds['recorded'], rounds['plain'], strict=True)]
    table = Table('evaluation', 'p20', 'p50', 'p80')
    for name, found in rounds.items():
        table.add_row(f'{name}, ms', *(f'{v:.1f}' for v in quantiles([1000 * r['seconds'] for r in found], digits=3)))
    table.add_row('ratio', *(f'{v:.3f}' for v in quantiles(ratios, digits=4)))
    Console().print(table)
    print(f'{device}, {torch.get_num_threads()} threads, batch of {args.batch_size}:', installed_versions())


if __name__ == '__main__':
    main()

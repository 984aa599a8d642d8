"""What networks cost, as tables for a terminal."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table

from .cost import PHASES, Quantiles
from .cost_file import Cost


class Target(NamedTuple):
    """A limit to a field of :class:`Cost` of a network with SE, from above unless ``at_least``."""

    figure: str
    field: str
    limit: float
    part: str
    mode: str = 'train'
    compiled: bool = False
    device: str = 'any'
    at_least: bool = False
    variant: str = 'fused'
    batch: int | None = None  # None for any


TARGETS = (
    Target(
        'stored activations',
        'stored_ratio',
        1.01,
        'target',
    ),
    Target(
        'CPU training step',
        'step_ratio',
        1.03,
        'target',
        device='cpu',
    ),
    Target(
        'CPU inference, batch 1',
        'step_ratio',
        1.02,
        'target',
        'inference',
        device='cpu',
    ),
    Target(
        'GPU training step',
        'step_ratio',
        1.00,
        'target',
        device='cuda',
    ),
    Target('GPU training step, compiled', 'step_ratio', 1.05, 'target', compiled=True, device='cuda'),
    Target(
        'GPU inference',
        'step_ratio',
        1.03,
        'target',
        'inference',
        device='cuda',
    ),
    Target('bandwidth of the tail, of a copy', 'bandwidth_ratio', 0.75, 'tail', device='cuda', at_least=True),
    Target('Faster R-CNN step, time', 'step_ratio', 1.02, 'detector'),
    Target('Faster R-CNN step, stored activations', 'stored_ratio', 1.01, 'detector'),
    *(
        Target(figure, 'step_ratio', limit, part, 'inference', compiled, 'cpu', variant='deployed', batch=batch)
        for figure, limit, part, compiled, batch in (
            ('CPU inference, both deployed, batch 1', 1.02, 'deployed', False, 1),
            ('CPU inference, both deployed, batch 8', 1.01, 'deployed', False, 8),
            ('CPU inference, both deployed, batch 1, compiled', 1.02, 'deployed', True, 1),
            ('CPU inference, deployed, plain as trained, batch 1', 0.95, 'deployed and trained', False, 1),
            ('CPU inference, both deployed, batch 1, OpenVINO', 1.01, 'openvino', False, 1),
            ('CPU inference, both deployed, batch 1, onnxruntime', 1.03, 'onnxruntime', False, 1),
        )
    ),
    Target(
        'GPU inference, both deployed, compiled',
        'step_ratio',
        1.05,
        'deployed',
        'inference',
        True,
        'cuda',
        variant='deployed',
    ),  # fmt: skip
)


def target_table(costs: list[Cost]) -> Table:
    """What is to be reached beside what was measured."""
    device = 'cuda' if any(cost.peak_bytes for cost in costs) else 'cpu'  # only GPUs have a peak
    table = Table('figure', 'to reach', 'measured', 'p20 to p80', '', title='SE, plain network = 1')
    for target in TARGETS:
        wanted = target.part, target.variant, target.mode, target.compiled, ''
        found = [c for c in costs if (c.part, c.variant, c.mode, c.compiled, c.remark) == wanted]
        found = [c for c in found if target.batch in (None, c.batch)]
        value = getattr(found[0], target.field) if found and target.device in ('any', device) else None
        cells = [target.figure, f'{"at least" if target.at_least else "at most"} {target.limit:.2f}']
        if value is None:
            cells.append('not measured')
        else:
            p20, p50, p80 = value if isinstance(value, Quantiles) else (None, value, None)
            reached = p50 >= target.limit if target.at_least else p50 <= target.limit
            spread = f'{p20:.3f} to {p80:.3f}' if p20 else ''
            cells += [f'{p50:.3f}', spread, 'reached' if reached else 'missed']
        table.add_row(*cells)
    return table


def cost_table(costs: list[Cost]) -> Table:
    """Everything that was measured."""
    table = Table('part', 'variant', 'mode', 'batch', 'input', 'depth', 'step, ms: p20, p50, p80', *PHASES, 'stored')
    for cost in costs:
        name = cost.variant + (', compiled' if cost.compiled else '')
        cells = [cost.part, name, cost.mode, str(cost.batch), f'{cost.height}x{cost.width}', str(cost.depth)]
        if cost.remark:
            cells.append(cost.remark)
        elif cost.step_ms:
            ratios = [getattr(cost, f'{phase}_ratio') for phase in PHASES]
            cells.append(' / '.join(f'{time:.4g}' for time in cost.step_ms))
            cells += [f'{ratio.p50:.3f}' if ratio else '' for ratio in ratios]
            cells.append(f'{cost.stored_ratio:.3f}' if cost.stored_ratio else '')
        table.add_row(*cells)
    return table

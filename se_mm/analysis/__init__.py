from .complexity import complexity, test_shape
from .cost import Measurement, Quantiles, clock, compare, interleave, keep_freed_memory, quantiles, stored_bytes
from .cost_file import Cost, Setting, cost_writer, read_costs
from .figures import draw_details, draw_overview, save_figure

__all__ = [
    'Cost',
    'Measurement',
    'Quantiles',
    'Setting',
    'clock',
    'compare',
    'complexity',
    'cost_writer',
    'draw_details',
    'draw_overview',
    'interleave',
    'keep_freed_memory',
    'quantiles',
    'read_costs',
    'save_figure',
    'stored_bytes',
    'test_shape',
]

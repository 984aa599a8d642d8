"""What networks cost: parameters and multiply-adds, time and memory; and what the gates of SE do over a data set."""

from se_mm.utils.moved import moved_names

from .complexity import complexity, input_size
from .cost import Measurement, Quantiles, clock, compare, interleave, keep_freed_memory, quantiles, stored_bytes
from .cost_file import Cost, Setting, cost_writer, read_costs
from .excitation import Analysis, measure_gates
from .figures import draw_details, draw_overview, save_figure
from .gate_statistics import GateStatistics
from .gates import GateRecorder, gate_layers

__all__ = [
    'Analysis',
    'Cost',
    'GateRecorder',
    'GateStatistics',
    'Measurement',
    'Quantiles',
    'Setting',
    'clock',
    'compare',
    'complexity',
    'cost_writer',
    'draw_details',
    'draw_overview',
    'gate_layers',
    'input_size',
    'interleave',
    'keep_freed_memory',
    'measure_gates',
    'quantiles',
    'read_costs',
    'save_figure',
    'stored_bytes',
]

__getattr__ = moved_names(
    __name__,
    dict(test_shape='se_mm.analysis.input_size', kept_bytes='se_mm.analysis.stored_bytes'),
    dict(draw_costs='use se_mm.analysis.draw_overview or draw_details'),
)

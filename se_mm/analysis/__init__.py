"""What networks cost: parameters and multiply-adds, time and memory, and their figures."""

from se_mm.utils.moved import moved_names

from .complexity import complexity, input_size
from .cost import clock, interleave, kept_bytes, quantiles
from .plot import draw_costs

__all__ = ['clock', 'complexity', 'draw_costs', 'input_size', 'interleave', 'kept_bytes', 'quantiles']

__getattr__ = moved_names(__name__, dict(test_shape='se_mm.analysis.input_size'))

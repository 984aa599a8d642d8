from .complexity import complexity, test_shape
from .cost import clock, interleave, kept_bytes, quantiles
from .plot import draw_costs

__all__ = ['clock', 'complexity', 'draw_costs', 'interleave', 'kept_bytes', 'quantiles', 'test_shape']

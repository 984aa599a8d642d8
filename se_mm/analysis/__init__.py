from .complexity import complexity, test_shape
from .cost import clock, interleave, kept_bytes, quantiles

__all__ = ['clock', 'complexity', 'interleave', 'kept_bytes', 'quantiles', 'test_shape']

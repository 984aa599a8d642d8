from .complexity import complexity, test_shape

__all__ = ['complexity', 'test_shape']

from .places365 import Places365

__all__ = ['Places365']

from .reading import check_fit, read_checkpoint

__all__ = ['check_fit', 'read_checkpoint']

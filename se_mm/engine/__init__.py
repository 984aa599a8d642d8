"""What the tools share: the command line, launching, checks before a run, results after it."""

from se_mm.utils.moved import moved_names

from .checks import check_config
from .launch import guard, init_distributed, once_per_machine

__all__ = ['check_config', 'guard', 'init_distributed', 'once_per_machine']

__getattr__ = moved_names(
    __name__, dict(config_path='se_mm.utils.config.config_path', load_config='se_mm.utils.config.load_config')
)

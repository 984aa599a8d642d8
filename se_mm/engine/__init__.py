from .config import load_config
from .launch import guard, init_distributed, once_per_machine
from .preflight import check_config

__all__ = ['check_config', 'guard', 'init_distributed', 'load_config', 'once_per_machine']

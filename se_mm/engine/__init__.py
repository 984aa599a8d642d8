from .config import config_path, load_config
from .launch import guard, init_distributed, once_per_machine
from .preflight import check_config

__all__ = ['check_config', 'config_path', 'guard', 'init_distributed', 'load_config', 'once_per_machine']

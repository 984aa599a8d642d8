from .config import load_config
from .launch import guard, init_distributed, on_main_process
from .preflight import check_config

__all__ = ['check_config', 'guard', 'init_distributed', 'load_config', 'on_main_process']

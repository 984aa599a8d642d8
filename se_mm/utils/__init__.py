from .files import InputError, sha256, write_json, written_whole
from .versions import check_versions, installed_versions

__all__ = ['InputError', 'check_versions', 'installed_versions', 'sha256', 'write_json', 'written_whole']

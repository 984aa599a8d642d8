from .files import InputError, errors_name, sha256, write_json, written_whole
from .versions import check_versions, installed_versions

__all__ = ['InputError', 'check_versions', 'errors_name', 'installed_versions', 'sha256', 'write_json', 'written_whole']

"""YAML files that MMEngine reads are parsed once in a process, and in the programs that it forks.

MMEngine reads all metafiles of a package for each base config of the package. Parsing them takes most of the time in
which a config is read, and the tests read configs a thousand times.
"""

import functools
import pickle

import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import YamlHandler


@register_handler(['yaml', 'yml'])
class YamlOnce(YamlHandler):
    def load_from_fileobj(self, file, **kwargs):
        return super().load_from_fileobj(file, **kwargs) if kwargs else pickle.loads(_parsed(file.read()))


@functools.cache
def _parsed(text):
    return pickle.dumps(yaml.load(text, getattr(yaml, 'CSafeLoader', yaml.SafeLoader)))

"""Package definition. Tool settings are in pyproject.toml, pinned versions in requirements.txt."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent


# Folders of Python's, and the scripts that set up a checkout of their own.
NOT_INSTALLED = shutil.ignore_patterns('__pycache__', 'setup_env.sh', 'run_tests.sh', 'quickstart.sh')


class BuildWithConfigs(build_py):
    """Puts configs and tools into the folder .mim of the package, where mim looks for them."""

    def run(self):
        super().run()
        target = here / 'se_mm' / '.mim' if self.editable_mode else Path(self.build_lib, 'se_mm', '.mim')
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in ('configs', 'tools', 'model-index.yml'):
            if self.editable_mode:
                (target / name).symlink_to(here / name)
            elif (here / name).is_dir():
                shutil.copytree(here / name, target / name, ignore=NOT_INSTALLED)
            else:
                shutil.copy(here / name, target)


version = {}
exec((here / 'se_mm' / 'version.py').read_text(), version)

setup(
    name='se_mm',
    version=version['__version__'],
    description='Squeeze-and-Excitation networks for OpenMMLab',
    long_description=(here / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    cmdclass=dict(build_py=BuildWithConfigs),
    packages=find_packages(include=['se_mm', 'se_mm.*']),
    package_data={
        'se_mm.weights': ['released.yml', 'released/*'],
        'se_mm.analysis': ['page.html.j2', 'page.css', 'excitation.html.j2'],
        'se_mm.engine': ['study_page.md.j2'],
    },
    python_requires='>=3.10',
    # mmengine and mmcv are needed too, but exist as two sets of distributions with the same import
    # names: requiring one would overwrite the other. Importing se_mm checks what is installed.
    install_requires=[
        'torch>=2.5',  # safe_globals, to read checkpoints without running code
        'numpy>=1.26',  # numpy._core, in checkpoints of NumPy 2
        'packaging',  # comparing versions
        'psutil',  # network interfaces, for distributed runs without GPUs
        'safetensors',  # a format of weights
        'pyyaml',  # the list of released weights
        'filelock',  # one download for all processes of a machine
    ],
    extras_require={
        'weights': ['timm>=1.0', 'protobuf>=4.22'],  # timm:// and Caffe's files
        'openvino': ['openvino>=2025.0'],  # checks exported files
        'prune': ['torch-pruning>=1.6,<2'],  # which channels belong together
        'onnx': ['onnx>=1.16', 'onnxscript>=0.2', 'onnxruntime>=1.17'],
        # the maintained fork
        'onedl': [
            'onedl-mmengine>=0.10.8,<1.0',
            'onedl-mmcv>=2.3.0,<2.4',
            'onedl-mmdetection>=3.5.0,<4.0',
            'onedl-mmpretrain>=1.3.0,<2.0',
            'torchvision>=0.20',  # operators of detectors, where mmcv has none compiled
            'pycocotools>=2.0.7',
            'setuptools',  # distutils, which Python 3.12 lacks and mmengine imports
            'rich',  # tables and progress of the tools
            'matplotlib',  # pictures of tools/benchmark.py, curves of tools/report.py
            'jinja2',  # the page of tools/report.py
            'scipy>=1.11',  # .mat files of SVHN; intervals of differences
        ],
        # the original packages, whose own tools cannot load their checkpoints with torch 2.6 (those of se_mm can)
        'openmmlab': [
            'torch<2.6',
            'torchvision',
            'numpy>=1.26,<2',
            'mmengine>=0.10.4,<0.10.8',
            'mmcv-lite>=2.0.1,<2.2',  # mmcv without compiled operators: its setup fails with today's setuptools
            'mmdet>=3.3.0,<3.4',
            'mmpretrain>=1.2.0,<1.3',
            'pycocotools>=2.0.7',
            'setuptools',
            'rich',
            'matplotlib',
            'jinja2',
            'scipy>=1.11',
        ],
    },
)

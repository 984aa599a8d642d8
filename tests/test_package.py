"""What users install: nothing is missing in the sdist, and the wheel made from it works without a checkout."""

import json
import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from conftest import ROOT


def test_installed_wheel_trains_and_tests_from_another_folder(run, scenes, tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
        elif path.name in ('.ci', '.dev_scripts', 'configs', 'docs', 'se_mm', 'tests', 'tools'):
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    files = {str(p.relative_to(source)) for p in source.rglob('*') if p.is_file()}
    code, output = run(sys.executable, 'setup.py', '-q', 'sdist', '--dist-dir', tmp_path / 'dist', cwd=source)
    assert code == 0, output
    (sdist,) = (tmp_path / 'dist').iterdir()
    with tarfile.open(sdist) as archive:
        packed = {name.partition('/')[2] for name in archive.getnames()}
    assert {name for name in files - packed if not name.startswith('.git')} == {'.pre-commit-config.yaml'} & files

    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    code, output = run(*pip, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', tmp_path / 'dist', sdist)
    assert code == 0, output
    (wheel,) = (tmp_path / 'dist').glob('*.whl')
    # An environment that has what se_mm needs, but not the checkout: the folder's own .pth files are not followed.
    assert run(sys.executable, '-m', 'venv', '--without-pip', 'env')[0] == 0
    python = tmp_path / 'env' / 'bin' / 'python'
    (packages,) = (tmp_path / 'env').glob('lib/python*/site-packages')
    installed = Path(sysconfig.get_path('purelib'))
    (packages / 'dependencies.pth').write_text(f'{installed}\n')
    shutil.copy(installed / 'distutils-precedence.pth', packages)  # mmengine needs setuptools' distutils
    code, output = run(*pip, '--python', python, 'install', '--no-deps', '--no-index', wheel)
    assert code == 0, output
    code, output = run(python, '-c', 'import se_mm; print(se_mm.__file__)')
    assert code == 0 and str(packages) in output

    tools = packages / 'se_mm' / '.mim' / 'tools'
    config = 'se_mm::quickstart/se_r18_scenes.py'
    options = [f'{split}_dataloader.dataset.data_root={scenes}' for split in ('train', 'val', 'test')]
    options += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=2']
    code, output = run(python, tools / 'train.py', config, '--cfg-options', *options)
    assert code == 0, output
    work = Path('work_dirs', 'se_r18_scenes')
    code, output = run(python, tools / 'test.py', config, work / 'epoch_1.pth', '--cfg-options', *options)
    assert code == 0, output
    assert 'scene_error/top1' in json.loads((tmp_path / work / 'metrics.json').read_text())['metrics']
    assert not list(tools.glob('*env*')) and (tools / 'dist_train.sh').stat().st_mode & 0o100


def test_names_that_are_gone_say_what_to_use():
    import se_mm.analysis
    import se_mm.checkpoints

    with pytest.raises(AttributeError, match='check_fit is gone: use se_mm.weights.load_model'):
        se_mm.checkpoints.check_fit  # noqa: B018
    with pytest.raises(AttributeError, match='draw_costs is gone: use .*draw_overview'):
        se_mm.analysis.draw_costs  # noqa: B018

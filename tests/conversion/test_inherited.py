"""Configs that inherit from others, and where their trainings write."""

import pytest
from mmengine.config import Config

from se_mm.conversion import inherited_config
from se_mm.utils.config import load_config


@pytest.mark.parametrize(
    ('content', 'out', 'work_dir', 'resume'),
    [
        ('', 'small.py', 'work_dirs/small', None),
        ("work_dir = './work_dirs/net'\nresume = True\n", 'small.py', './work_dirs/small', False),
        ("work_dir = './work_dirs/net'\nresume = False\n", 'small.py', './work_dirs/small', False),
        ('', 'smaller/net.py', './work_dirs/smaller_net', None),
    ],
    ids=['written by hand', 'left by a resumed training', 'left by a training', 'of the same name'],
)
def test_trainings_do_not_write_where_others_do(tmp_path, monkeypatch, content, out, work_dir, resume):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'net.py').write_text(f'model = dict(depth=18)\n{content}')
    path = tmp_path / out
    path.parent.mkdir(exist_ok=True)
    path.write_text(inherited_config(tmp_path / 'net.py', path, dict(model=dict(width=3))))
    cfg = load_config(path)
    assert cfg.work_dir == work_dir != load_config(tmp_path / 'net.py').work_dir
    assert Config.fromfile(path).get('resume') is resume
    assert cfg.model == dict(depth=18, width=3)

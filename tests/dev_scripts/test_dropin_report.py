"""The report on other packages' configs, for one family of each."""

import json
import sys

import pytest

from conftest import ROOT


@pytest.mark.parametrize('package, family', [('mmdet', 'retinanet'), ('mmpretrain', 'resnet')])
def test_report(run, tmp_path, package, family):
    report = [
        sys.executable,
        ROOT / '.dev_scripts' / 'dropin_report.py',
        '--package',
        package,
        '--families',
        family,
        '--size',
        '64',
    ]
    code, output = run(*report, '--json', 'report.json', '--markdown', 'report.md')
    assert code == 0, output
    assert f'| {family} |' in (tmp_path / 'report.md').read_text()
    content = json.loads((tmp_path / 'report.json').read_text())
    assert content['configs'] >= 10
    assert content['results'] and all((row['plain'], row['SE']) == (None, None) for row in content['results'])
    code, output = run(*report, '--families', 'no')
    assert code == 1 and 'error: --families no: no such folder' in output

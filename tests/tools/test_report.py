"""The programs that put runs side by side, on work dirs."""

import json
import runpy
import sys

import pytest

from conftest import TOOLS
from se_mm.utils import InputError
from work_dirs import CLASSIFIERS, DETECTORS, write_evaluation, write_run


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a tool in this process, which saves its imports, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call_tool(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(TOOLS / name))['main']()

    return call_tool


def errors(folder, config, values):
    """Evaluations of runs of a config."""
    for seed, value in enumerate(values):
        metrics = {'scene_error/top1': value, 'scene_error/top5': 0.0}
        write_evaluation(folder / f'seed{seed}' / config.stem, config, metrics)


def test_page_of_work_dirs(run, shapes, scenes, tmp_path):
    for i, config in enumerate(CLASSIFIERS):
        write_run(tmp_path / 'runs' / config.stem, config, scenes, offset=0.1 * i)
    write_run(tmp_path / DETECTORS[0].stem, DETECTORS[0], shapes)
    (tmp_path / 'runs' / 'se_r18_scenes' / 'predictions.label.json').unlink()
    command = ['runs', DETECTORS[0].stem, 'runs/r18*', '-o', 'out/page.html', '--json', 'out/page.json']
    code, output = run(sys.executable, TOOLS / 'report.py', *command)
    assert code == 0, output
    assert f'page: {tmp_path}/out/page.html' in output.splitlines()
    assert 'note: No images: runs/se_r18_scenes/predictions.label.json is missing: tools/test.py writes it.' in output
    names = [network['config'] for network in json.loads((tmp_path / 'out' / 'page.json').read_text())]
    assert names == ['faster_rcnn_r18_shapes', 'r18_scenes', 'se_r18_scenes']
    page = (tmp_path / 'out' / 'page.html').read_text()
    assert ' runs faster_rcnn_r18_shapes &#39;runs/r18*&#39; -o out/page.html' in page
    assert all(f'<title>{names[0]}' in page or name in page for name in names)


def test_mistake_is_one_line(run, tmp_path):
    code, output = run(sys.executable, TOOLS / 'report.py', 'none')
    assert code == 1 and 'error: none: there is no work dir of MMEngine' in output and 'Traceback' not in output
    assert not (tmp_path / 'report.html').exists()


def test_mistakes_in_work_dirs(call, tmp_path):
    write_evaluation(tmp_path / 'empty', 'a.py', {})
    with pytest.raises(InputError, match='^empty has no config'):
        call('report.py', 'empty')
    (tmp_path / 'empty' / 'metrics.json').write_text('{')
    with pytest.raises(InputError, match='^empty/metrics.json is not a file that tools/test.py wrote'):
        call('report.py', 'empty')


def test_seeds_are_compared(call, capsys, tmp_path):
    errors(tmp_path, CLASSIFIERS[0], [10.0, 11.0, 12.0])
    errors(tmp_path, CLASSIFIERS[1], [8.0, 8.5, 7.5])
    write_evaluation(tmp_path / 'seed0' / 'other', 'other.py', {})
    patterns = [f'seed*/{config.stem}' for config in CLASSIFIERS]
    outputs = []
    for places in (patterns, ['.']):
        call('compare.py', *CLASSIFIERS, '--work-dirs', *places, '--markdown', 'table.md', '--json', 'table.json')
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and 'better' in outputs[0]
    plain, se = json.loads((tmp_path / 'table.json').read_text())
    assert plain['measured']['top1'] == 11.0 and plain['deviation']['top1'] == 1.0 and plain['difference'] == {}
    assert se['values']['top1'] == [8.0, 8.5, 7.5] and len(se['work_dirs']) == 3
    found = se['difference']['top1']
    assert found['value'] == -3.0 and found['low'] < -3.0 < found['high'] < 0 and found['verdict'] == 'better'
    assert se['difference']['top5'] == dict(value=0.0, low=None, high=None, verdict='')
    table = (tmp_path / 'table.md').read_text()
    assert '| r18_scenes | 2.80 | 0.09 | 3 | 11.0 ± 1.0 | 0.0 ± 0.0 | - |' in table
    assert '| se_r18_scenes | 2.82 | 0.09 | 3 | 8.0 ± 0.5 | 0.0 ± 0.0 (0.0) | - |' in table
    assert f'| se_r18_scenes | top1 | -3.0 | {found["low"]:+.1f} to {found["high"]:+.1f} | better |' in table


@pytest.mark.parametrize(
    'places, message',
    [
        (['x*', 'seed0/se_r18_scenes'], r'x\*: there is no work dir'),
        (['seed0/r18_scenes', 'seed1/r18_scenes', 'seed0/se_r18_scenes'], 'has 3 folders for 2 configs: .* in quotes'),
        (['seed0/r18_scenes', 'seed0/r18_scenes'], 'seed0/r18_scenes/metrics.json is an evaluation of .*, not of'),
        (['seed*/r18_scenes', 'seed*/r18_scenes'], 'none of 2 work dirs is of .*se_r18_scenes.py, they are of r18_sc'),
        (['seed0/r18_scenes', 'open'], 'open/b has no metrics.json: evaluate it with tools/test.py, or leave it out'),
        (['seed0/r18_scenes', 'twice'], 'are one checkpoint: a run counts once'),
    ],
)
def test_mistakes_in_comparisons(call, tmp_path, places, message):
    for config in CLASSIFIERS:
        errors(tmp_path, config, [10.0, 11.0])
    for folder in ('open/a', 'open/b', 'twice/a', 'twice/b'):
        write_evaluation(tmp_path / folder, CLASSIFIERS[1], {})
    (tmp_path / 'open' / 'b' / 'metrics.json').unlink()
    (tmp_path / 'open' / 'b' / '20260101_000000' / 'vis_data').mkdir(parents=True)
    (tmp_path / 'open' / 'b' / 'se_r18_scenes.py').write_text('')
    one = tmp_path / 'twice' / 'a' / 'metrics.json'
    (tmp_path / 'twice' / 'b' / 'metrics.json').write_text(one.read_text())
    with pytest.raises(InputError, match=message):
        call('compare.py', *CLASSIFIERS, '--work-dirs', *places)


def test_quickstart_shows_at_once_what_happens(run):
    """Importing torch and OpenMMLab takes seconds."""
    script = (
        'import runpy, sys; sys.argv = sys.argv[1:]; sys.path[0] = sys.argv[0].rpartition("/")[0]\n'
        'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'finally: print(sorted({"torch", "mmengine", "se_mm"} & set(sys.modules)))'
    )
    code, output = run(sys.executable, '-c', script, TOOLS / 'quickstart.py', '--help')
    assert code == 0 and output.splitlines()[-1] == '[]', output


def test_quickstart_estimates_the_time_that_is_left():
    sys.path.insert(0, str(TOOLS))
    try:
        from quickstart import remaining
    finally:
        sys.path.remove(str(TOOLS))
    assert remaining(300, 0, 0).total_seconds() == 300
    slow = [remaining(300, done, 3 * done).total_seconds() for done in (0, 30, 150, 300)]  # a third of the speed
    assert slow[1] > 1.3 * (300 - 30) and 2 * (300 - 150) < slow[2] < 3 * (300 - 150) and slow[3] == 0

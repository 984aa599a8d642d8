import json
import sys

from conftest import CONFIGS, TOOLS

DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_r18_shapes.py'
CLASSIFIER = CONFIGS / 'quickstart' / 'r18_scenes.py'
TRACKER = 'mmdet::bytetrack/bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17halfval.py'


def test_trackers_are_compared_by_their_detectors(run, tmp_path):
    compare = [sys.executable, TOOLS / 'compare.py', DETECTOR, TRACKER, '--shape', 64, 64]
    code, output = run(*compare, '--markdown', 'new/a.md', '--json', 'new/a.json')
    assert code == 0, output
    _, tracker = json.loads((tmp_path / 'new' / 'a.json').read_text())
    assert tracker['params'] == 98_995_378  # of YOLOX-x with one class
    assert TRACKER.rpartition('/')[2][:-3] in (tmp_path / 'new' / 'a.md').read_text()


def test_detectors_and_classifiers_are_not_compared(run, tmp_path):
    code, output = run(sys.executable, TOOLS / 'compare.py', DETECTOR, CLASSIFIER, '--json', 'a.json')
    assert code == 1 and 'compare them separately' in output and 'Traceback' not in output
    assert not list(tmp_path.iterdir())


def test_evaluations_of_other_data(run, tmp_path):
    configs = [CLASSIFIER, CLASSIFIER.with_name('se_r18_scenes.py')]
    folders = [tmp_path / config.stem for config in configs]
    for folder, config, images in zip(folders, configs, (16, 36500)):
        folder.mkdir()
        content = dict(config=str(config), metrics={'error/top1': 20.0}, dataset=dict(images=images))
        (folder / 'metrics.json').write_text(json.dumps(content))
    code, output = run(sys.executable, TOOLS / 'compare.py', *configs, '--work-dirs', *folders)
    assert code == 0 and 'se_r18_scenes was evaluated on other data than r18_scenes.' in ' '.join(output.split()), (
        output
    )

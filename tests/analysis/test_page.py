"""The page of runs, read as a browser reads it."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from scipy.io import savemat

from conftest import CONFIGS
from se_mm.analysis.examples import answers
from se_mm.analysis.page import _commands, compare_runs, render
from se_mm.analysis.runs import find_work_dirs, read_run
from se_mm.utils import InputError
from se_mm.utils.config import load_config
from work_dirs import CLASSIFIERS, DETECTORS, step, write_evaluation, write_log, write_run


class Page(HTMLParser):
    """Elements with their attributes, texts, and what is fetched from elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(html)
        styles = re.findall(r'url\(([^)]*)\)', html)
        addresses = [attrs[key] for _, attrs in self.elements for key in ('src', 'href', 'srcset') if key in attrs]
        self.fetched = [address for address in [*addresses, *styles] if not address.startswith(('data:', '#'))]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ('img', 'meta', 'br', 'wbr', 'link'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style' and data.strip():
            self.texts.append(' '.join(data.replace('\u200b', '').split()))

    def all(self, tag, cls=None):
        return [a for t, a in self.elements if t == tag and (cls is None or cls in a.get('class', '').split())]


def page_of(*folders):
    kinds = compare_runs([read_run(folder) for folder in folders])
    return Page(render(kinds, 'python tools/report.py')), kinds


@pytest.fixture(scope='module')
def work_dirs(shapes, scenes, tmp_path_factory):
    """Two runs of two detectors and two classifiers."""
    folder = tmp_path_factory.mktemp('runs')
    for seed in (0, 1):
        for i, (detector, classifier) in enumerate(zip(DETECTORS, CLASSIFIERS)):
            write_run(folder / f'{seed}' / detector.stem, detector, shapes, offset=0.2 * i + 0.01 * seed)
            write_run(folder / f'{seed}' / classifier.stem, classifier, scenes, offset=0.2 * i + 0.01 * seed)
    return folder


@pytest.fixture(scope='module')
def whole(work_dirs):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CONFIGS)
        page, kinds = page_of(*find_work_dirs(str(work_dirs)))
    assert page.open == []
    return page, kinds


def test_pictures_are_inside_and_nothing_is_fetched(whole):
    page, _ = whole
    assert page.fetched == [] and not page.all('script') and not page.all('link')
    images = page.all('img')
    kinds = [image['src'].partition(';')[0] for image in images]
    assert kinds.count('data:image/svg+xml') == 3  # loss, AP, error
    assert kinds.count('data:image/jpeg') == len(images) - 3 == 6 * 3 + 6 + 6
    for image in images:
        content = base64.b64decode(image['src'].partition('base64,')[2], validate=True)
        if image['src'].startswith('data:image/svg'):
            ElementTree.fromstring(content)
        else:
            size = (int(image['width']), int(image['height']))
            assert Image.open(io.BytesIO(content)).size == size
            Image.open(io.BytesIO(content)).load()
        assert image['alt']


def test_boxes_are_where_the_annotations_say(whole, shapes):
    content = json.loads((shapes / 'annotations' / 'val.json').read_text())
    numbers = {image['file_name']: image['id'] for image in content['images']}
    _, (detectors, _) = whole
    assert [example.photo.name for example in detectors.detections] == [f'{i:06d}.jpg' for i in (1, 3, 4, 5, 7, 8)]
    for example in detectors.detections:
        annotations = [item for item in content['annotations'] if item['image_id'] == numbers[example.photo.name]]
        places = sorted([v / 1.28 for v in item['bbox']] for item in annotations)
        (truth, boxes), *found = example.boxes
        assert truth is None and [name for name, _ in found] == [path.stem for path in DETECTORS]
        for name, boxes in example.boxes:
            # Predictions below the score are not shown.
            assert sorted([b.left, b.top, b.width, b.height] for b in boxes) == [pytest.approx(p) for p in places]
            assert {b.score for b in boxes} <= ({None} if name is None else {0.9})
        names = {c['id']: c['name'] for c in content['categories']}
        assert sorted(box.category for box in boxes) == sorted(names[a['category_id']] for a in annotations)


def test_boxes_of_the_page(whole):
    page, (detectors, _) = whole
    boxes = page.all('div', 'box')
    assert len(boxes) == sum(len(found) for example in detectors.detections for _, found in example.boxes)
    for box in boxes:
        values = dict(re.findall(r'(\w+): ([\d.]+)%', box['style']))
        assert all(-1 <= float(value) <= 101 for value in values.values()) and len(values) == 4
    assert page.texts.count('ground truth') == 1


def test_answers(whole):
    """One network answers category 0, the other 2: they differ everywhere."""
    page, (_, classifiers) = whole
    assert classifiers.divided_in_all == 16 and len(classifiers.answers) == len(classifiers.divided) == 6
    for scene in classifiers.answers:
        answers = dict(scene.answers)
        assert list(answers) == [path.stem for path in CLASSIFIERS]
        assert answers['r18_scenes'][0] == ('desert/sand', 0.75)
        assert answers['se_r18_scenes'][0] == ('forest/broadleaf', 0.75)
        assert scene.truth in page.texts
    right = sum(scene.truth in ('desert/sand', 'forest/broadleaf') for scene in classifiers.answers)
    assert len(page.all('b', 'right')) >= right and len(page.all('b', 'wrong')) >= 12
    assert '6 of 16 images to which the networks give different answers' in page.texts


def test_table(whole):
    _, (detectors, classifiers) = whole
    rows = {label: [cell.text for cell in cells] for label, cells in detectors.rows}
    assert rows['parameters, M'] == ['3.89', '3.91'] and rows['runs'] == ['2', '2']
    assert rows['GFLOPs at 128x128'] == ['0.35', '0.35'] and rows['training, min'] == ['0.2 ± 0.0'] * 2
    assert rows['AP, %'][0].endswith(' ± 0.7') and 'AP_L, %' not in rows
    cells = dict(detectors.rows)['AP, %']
    assert cells[0].difference is None and cells[1].difference.verdict == 'worse'
    assert cells[1].difference.value == pytest.approx(-20)
    errors = dict(classifiers.rows)['top-1 error, %']
    assert errors[1].difference.value == pytest.approx(0.2) and errors[1].difference.verdict == 'worse'
    assert dict(classifiers.rows)['top-5 error, %'][1].difference.verdict == ''  # no spread


def test_texts(whole, work_dirs):
    page, _ = whole
    assert page.texts[0].startswith('faster_rcnn_r18_shapes, ') and '4 networks side by side' in page.texts
    expected = 'The AP of faster_rcnn_se_r18_shapes is 20.0 points lower than that of faster_rcnn_r18_shapes'
    assert f'{expected}, which is worse.' in page.texts
    stored = work_dirs / '0' / 'r18_scenes' / '20260101_000000' / 'vis_data' / 'config.py'
    assert f'cp {stored} work_dirs/again/r18_scenes.py' in page.texts
    train = 'tools/dist_train.sh work_dirs/again/r18_scenes.py 2 --work-dir work_dirs/again/r18_scenes'
    assert f'{train} --cfg-options randomness.seed=1' in page.texts
    checkpoint = 'work_dirs/again/r18_scenes/epoch_2.pth'
    test = f'tools/dist_test.sh work_dirs/again/r18_scenes.py {checkpoint} 2 --work-dir work_dirs/again/r18_scenes'
    assert test in page.texts and 'python tools/report.py' in page.texts and 'torch 2.0' in page.texts
    config = work_dirs / '1' / 'r18_scenes' / '20260101_000000' / 'vis_data' / 'config.py'
    assert any(text.startswith(f'{config}; evaluated on 2026-01-01') for text in page.texts)


def test_numbers_as_json(whole):
    _, (detectors, _) = whole
    _, se = json.loads(json.dumps([network.numbers() for network in detectors.networks]))
    assert se['config'] == 'faster_rcnn_se_r18_shapes' and len(se['work_dirs']) == len(se['values']['AP']) == 2
    assert se['deviation']['AP'] == pytest.approx(0.5**0.5) and se['difference']['AP']['verdict'] == 'worse'
    assert se['training_seconds'] == [10.0, 10.0] and se['params'] > 3e6


def test_one_run_of_one_network(work_dirs):
    page, (kind,) = page_of(work_dirs / '0' / 'r18_scenes')
    assert not any('side by side' in text for text in page.texts) and page.texts[:2] == ['r18_scenes'] * 2
    assert kind.sentences == [] and kind.divided == [] and len(kind.answers) == 6
    assert any('ran once' in text for text in page.texts) and not any('±' in text for text in page.texts)


def test_what_is_missing_is_said(work_dirs, tmp_path):
    plain, se = (shutil.copytree(work_dirs / '0' / path.stem, tmp_path / path.stem) for path in DETECTORS)
    (se / 'predictions.bbox.json').unlink()
    page, _ = page_of(plain, se)
    assert f'No images: {se / "predictions.bbox.json"} is missing: tools/test.py writes it.' in page.texts
    (se / 'metrics.json').unlink()
    page, (kind,) = page_of(plain, se)
    assert f'No metrics.json of {se}: tools/test.py writes it.' in page.texts
    assert [cell.text for cell in dict(kind.rows)['AP50, %']][1] == '-'
    assert len(kind.detections[0].boxes) == 2  # the truth and the plain detector
    cfg = plain / '20260101_000000' / 'vis_data' / 'config.py'
    text = cfg.read_text()
    for root, reason in (('nowhere', 'there is no nowhere here'), (tmp_path, f'the validation data of {plain} cannot')):
        cfg.write_text(re.sub(r"data_root=\s*'[^']*'", f"data_root='{root}'", text))
        page, _ = page_of(plain)
        assert any(remark.startswith(f'No images: {reason}') for remark in page.texts)
        assert len(page.all('img')) == 2  # the curves


def test_other_data_is_said(work_dirs, shapes, tmp_path):
    other = shutil.copytree(shapes, tmp_path / 'shapes')
    run = write_run(tmp_path / DETECTORS[1].stem, DETECTORS[1], other)
    page, (kind,) = page_of(work_dirs / '0' / DETECTORS[0].stem, run)
    expected = 'Evaluated on other data than faster_rcnn_r18_shapes: faster_rcnn_se_r18_shapes.'
    assert f'{expected} Their numbers do not compare.' in page.texts
    assert len(kind.detections[0].boxes) == 2


def test_runs_of_one_name_have_one_model(work_dirs, tmp_path):
    plain, se = (shutil.copytree(work_dirs / '0' / path.stem, tmp_path / path.stem) for path in DETECTORS)
    write_evaluation(se, DETECTORS[0], {})
    with pytest.raises(InputError, match='are named faster_rcnn_r18_shapes, but their models differ'):
        page_of(plain, se)


def test_neither_detector_nor_classifier(work_dirs, tmp_path):
    run = shutil.copytree(work_dirs / '0' / CLASSIFIERS[0].stem, tmp_path / 'run')
    cfg = run / '20260101_000000' / 'vis_data' / 'config.py'
    cfg.write_text(cfg.read_text().replace("default_scope = 'mmpretrain'", "default_scope = 'mmseg'"))
    with pytest.raises(InputError, match="default_scope='mmseg', a page shows mmdet and mmpretrain networks"):
        page_of(run)


def test_images_that_are_arrays(tmp_path):
    """SVHN gives arrays in RGB, not files."""
    images = np.zeros((32, 32, 3, 8), np.uint8)
    images[:, :, 0] = 250  # red
    savemat(tmp_path / 'test_32x32.mat', dict(X=images, y=np.arange(1, 9)[:, None]))
    cfg = load_config(CONFIGS / 'variations' / 'r18_svhn.py', {'test_dataloader.dataset.data_root': str(tmp_path)})
    cfg.dump(tmp_path / 'r18_svhn.py')
    found = [dict(index=i, truth=i + 1, answers=[3, 1], scores=[0.9, 0.1]) for i in range(8)]
    (tmp_path / 'predictions.label.json').write_text(json.dumps(found))
    write_evaluation(tmp_path, 'r18_svhn.py', {'error/top1': 87.5})
    spaced, divided, in_all = answers(dict(a=read_run(tmp_path)), count=2)
    assert [example.photo.name for example in spaced] == ['image 2', 'image 6'] and (divided, in_all) == ([], 0)
    assert spaced[0].truth == '3' and spaced[0].answers == [('a', [('3', 0.9), ('1', 0.1)])]
    picture = Image.open(io.BytesIO(base64.b64decode(spaced[0].photo.uri.partition('base64,')[2])))
    red, green, _ = picture.convert('RGB').getpixel((16, 16))
    assert picture.size == (32, 32) and red > 200 and green < 50


def test_names_cannot_break_the_page(work_dirs, tmp_path):
    run = shutil.copytree(work_dirs / '0' / CLASSIFIERS[0].stem, tmp_path / 'run')
    content = json.loads((run / 'metrics.json').read_text())
    (run / 'metrics.json').write_text(json.dumps(dict(content, config='<b>&"a.py', versions=dict(torch='<i>'))))
    page, _ = page_of(run)
    assert page.open == [] and '<b>&"a' in page.texts and 'torch <i>' in page.texts


def test_commands_of_a_resumed_run_begin_where_the_run_began(tmp_path):
    """The config that is stored last names a checkpoint of the run itself."""
    starts = {
        '20260101_000000': dict(load_from='a.pth', resume=False),
        '20260102_000000': dict(load_from='epoch_1.pth', resume=True),
    }
    for time, values in starts.items():
        write_log(tmp_path, [step(1, 2.0, 1)], time, Config(dict(model=dict(type='A'), **values)))
    copy, train = _commands(read_run(tmp_path))[1:3]
    assert copy.startswith(f'cp {tmp_path / "20260102_000000"}')
    assert train.endswith('--cfg-options resume=False load_from=a.pth')

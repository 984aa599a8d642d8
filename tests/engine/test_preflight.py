import json
import shutil
import sys

import pytest
import torch
from conftest import CONFIGS, TOOLS
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope

from se_mm.engine import check_config, load_config
from se_mm.engine.launch import check_gpus
from se_mm.utils import InputError

DETECTOR = CONFIGS / 'quickstart' / 'faster_rcnn_se_r18_shapes.py'
CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'


def options(config, root):
    values = {f'{loader}_dataloader.dataset.data_root': str(root) for loader in ('train', 'val', 'test')}
    if config == DETECTOR:
        values['test_evaluator.ann_file'] = values['val_evaluator.ann_file'] = f'{root}/annotations/val.json'
    return values


@pytest.fixture
def root(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / 'shapes')


@pytest.fixture
def annotations(root):
    """Edit the training annotations: a function of the parsed file."""
    path = root / 'annotations' / 'train.json'

    def edit(change):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    edit.path = path
    return edit


def problem(config, root, training=True, checkpoint=None, strict=True, **extra):
    cfg = load_config(config, options(config, root) | extra)
    with pytest.raises(InputError) as error:
        check_config(cfg, training=training, checkpoint=checkpoint, strict=strict)
    return str(error.value)


def assert_words(message, *words):
    assert all(word in message for word in words), message


def test_good_data_passes(root, scenes):
    check_config(load_config(DETECTOR, options(DETECTOR, root)), training=True)
    check_config(load_config(CLASSIFIER, options(CLASSIFIER, scenes)), training=False)


def test_data_root(root, tmp_path):
    assert_words(problem(DETECTOR, tmp_path / 'no'), f'{tmp_path}/no', 'does not exist', 'set data_root')
    (tmp_path / 'bare').mkdir()
    assert_words(problem(DETECTOR, tmp_path / 'bare'), 'is empty')
    assert_words(problem(CLASSIFIER, tmp_path / 'no'), f'{tmp_path}/no', 'does not exist', 'set data_root')


def test_annotation_file(root, annotations):
    text = annotations.path.read_text()
    for damaged, word in (
        (text[:-100], 'truncated or not JSON'),
        ('{"a": []}', 'not in COCO format'),
        (None, 'missing'),
    ):
        annotations.path.unlink() if damaged is None else annotations.path.write_text(damaged)
        assert_words(problem(DETECTOR, root), 'annotations/train.json', word)
    annotations.path.write_bytes(b'\xff\xfe\x00')
    assert_words(problem(DETECTOR, root), 'annotations/train.json', 'truncated or not JSON')


def test_entries(root, annotations):
    annotations(lambda content: content['annotations'][0].pop('bbox'))
    assert_words(problem(DETECTOR, root), 'annotations/train.json', "an entry has no 'bbox'")


def test_images(root):
    (root / 'train' / '000003.jpg').unlink()
    (root / 'train' / '000005.jpg').write_bytes(b'')
    assert_words(problem(DETECTOR, root), '2 of 16 images', 'train/000003.jpg (missing)')
    shutil.rmtree(root / 'train')
    assert_words(problem(DETECTOR, root), f'image folder {root}/train/ does not exist')


def test_categories(root, annotations):
    assert_words(
        problem(DETECTOR, root, **{'model.roi_head.bbox_head.num_classes': 80}),
        'model.roi_head.bbox_head.num_classes=80',
        '3 classes',
        'set model.roi_head.bbox_head.num_classes=3',
    )
    assert_words(
        problem(DETECTOR, root, **{'train_dataloader.dataset.metainfo.classes': ('circle', 'square', 'hexagon')}),
        "no category 'hexagon'",
        'circle, square, triangle',
    )
    annotations(lambda content: content['annotations'][7].update(category_id=9))
    assert_words(problem(DETECTOR, root), 'annotation 8 has category_id 9', 'none of its 3 categories')


def test_scenes_must_fit_the_head(scenes):
    message = problem(CLASSIFIER, scenes, **{'model.head.num_classes': 365})
    assert_words(message, 'model.head.num_classes=365', '8 classes')


def test_useless_boxes_are_counted_once(root, annotations, caplog):
    def change(content):
        content['annotations'][0]['bbox'] = [500, 10, 20, 20]
        content['annotations'][1]['bbox'] = [-40, 10, 20, 20]
        content['annotations'][2]['bbox'] = [10, 10, 0, 20]

    annotations(change)
    MMLogger.get_current_instance().addHandler(caplog.handler)
    check_config(load_config(DETECTOR, options(DETECTOR, root)), training=True)
    (line,) = [record.getMessage() for record in caplog.records if 'skipped' in record.getMessage()]
    assert_words(line, 'train.json', '2 outside their image', '1 without area')


@pytest.mark.parametrize(
    'key, value, words',
    [
        ('depth', 51, ['SEResNet has no depth 51', '[18, 34, 50, 101, 152]']),
        ('se_ration', 8, ["unexpected keyword argument 'se_ration'"]),
        ('type', 'SEResNot', ['SEResNot']),
    ],
)
def test_model_arguments(root, key, value, words):
    assert_words(problem(DETECTOR, root, **{f'model.backbone.{key}': value}), str(DETECTOR), *words)


def weights(config, **extra):
    cfg = load_config(config, extra)
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model).state_dict()


def test_checkpoints(root, tmp_path):
    path = tmp_path / 'a.pth'
    assert_words(problem(DETECTOR, root, checkpoint=str(path)), 'a.pth does not exist')
    torch.save(dict(state_dict=weights(DETECTOR)), path)
    check_config(load_config(DETECTOR, options(DETECTOR, root)), training=False, checkpoint=str(path))
    plain = load_config(str(DETECTOR).replace('_se_', '_'), options(DETECTOR, root))
    with pytest.raises(InputError, match=r'another architecture .* unexpected \(e\.g\. backbone\..*se_layer'):
        check_config(plain, training=False, checkpoint=str(path))
    check_config(plain, training=True, checkpoint=str(path), strict=False)  # fine-tuning


def test_pretrained_backbone(root, tmp_path):
    path = tmp_path / 'a.pth'
    cfg = load_config(DETECTOR, options(DETECTOR, root))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    with pytest.raises(InputError, match=r'model\.backbone\.init_cfg: .*a\.pth does not exist.*ImageNet'):
        check_config(cfg, training=True)
    torch.save(dict(state_dict=weights(CLASSIFIER)), path)
    check_config(cfg, training=True)
    cfg.model.backbone.init_cfg.prefix = 'trunk.'
    with pytest.raises(InputError, match='another architecture'):
        check_config(cfg, training=True)


def test_backbones_that_have_to_be_trained_first(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = problem(CONFIGS / 'faster_rcnn_se_x50_32x4d_coco.py', root)
    assert_words(message, 'work_dirs/se_x50_32x4d_imagenet/epoch_100.pth does not exist', 'Train the backbone first')


def test_tool_prints_one_line_and_writes_nothing(run, tmp_path, tmp_path_factory):
    broken = tmp_path_factory.mktemp('configs') / 'broken.py'
    broken.write_text('model = dict(')
    code, output = run(sys.executable, TOOLS / 'train.py', DETECTOR)
    assert code == 1 and output.strip().splitlines()[-1].startswith(
        'error: data_root data/drawn_shapes/ does not exist'
    )
    assert 'Traceback' not in output and not list(tmp_path.iterdir())
    for arguments, words in (
        (['no.py'], 'error: config no.py does not exist'),
        ([CONFIGS / '_base_' / 'schedule_1x.py'], 'has no model'),
        ([DETECTOR, '--amp'], '--amp: mixed precision needs a GPU'),
        ([broken], 'broken.py cannot be read'),
    ):
        code, output = run(sys.executable, TOOLS / 'train.py', *arguments)
        assert code == 1 and words in output.strip().splitlines()[-1] and 'Traceback' not in output
    assert not list(tmp_path.iterdir())


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    check_gpus(2)
    with pytest.raises(InputError, match='3 processes on this machine need 3 GPUs, but 2 are visible'):
        check_gpus(3)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    check_gpus(3)

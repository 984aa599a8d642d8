import json
import shutil
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, init_default_scope

from conftest import CONFIGS, TOOLS
from se_mm.datasets.checks import check_dataset
from se_mm.engine import check_config
from se_mm.engine.weight_checks import check_frozen, check_pretrained
from se_mm.utils import InputError
from se_mm.utils.config import build_model, load_config, use_scope

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


def problem(config, root, training=True, checkpoint=None, **extra):
    cfg = load_config(config, options(config, root) | extra)
    with pytest.raises(InputError) as error:
        check_config(cfg, training=training, checkpoint=checkpoint)
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
    assert_words(problem(DETECTOR, root), 'annotations/train.json', 'is UTF-16')


@pytest.mark.parametrize(
    'kind, key, value, words',
    [
        ('annotations', 'bbox', None, ['annotation 1 has bbox None', 'four numbers']),
        ('annotations', 'bbox', [1, 2, 3], ['annotation 1 has bbox [1, 2, 3]']),
        ('annotations', 'area', None, ['annotation 1 has area None']),
        ('annotations', 'category_id', 9, ['annotation 1 has category_id 9', 'none of its 3 categories']),
        ('annotations', 'image_id', 99, ['annotation 1 is of image 99']),
        ('annotations', 'id', None, ["annotations[0] has no 'id'"]),
        ('images', 'file_name', None, ["images[0] has no 'file_name'"]),
        ('categories', 'name', None, ["categories[0] has no 'name'"]),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else '',
)
def test_entries(root, annotations, kind, key, value, words):
    annotations(lambda content: content[kind][0].pop(key) if value is None else content[kind][0].update({key: value}))
    assert_words(problem(DETECTOR, root), 'annotations/train.json', *words)


def test_ignored_entries_may_lack_boxes(root, annotations):
    def change(content):
        content['annotations'][0].pop('bbox')
        content['annotations'][0]['ignore'] = 1

    annotations(change)
    check_config(load_config(DETECTOR, options(DETECTOR, root)), training=True)


def test_evaluator_must_have_the_data_sets_annotations(root, shapes):
    message = problem(DETECTOR, root, **{'val_evaluator.ann_file': f'{shapes}/annotations/val.json'})
    assert_words(message, 'val_evaluator.ann_file', f'set val_evaluator.ann_file={root}/annotations/val.json')


def test_data_of_other_kinds_is_left_to_its_class(root, tmp_path):
    """Remote data, classes by file, and data sets with annotations of their own."""
    names = tmp_path / 'classes.txt'
    names.write_text('circle\nsquare\ntriangle\n')
    cfg = load_config(DETECTOR, options(DETECTOR, root))
    cfg.train_dataloader.dataset.metainfo = dict(classes=str(names))
    check_config(cfg, training=True)
    cfg.train_dataloader.dataset.update(data_root='nowhere/', backend_args=dict(backend='petrel'))
    check_config(cfg, training=True)
    (root / 'annotations' / 'panoptic.json').write_text('{"annotations": [{"segments_info": []}]}')
    for name in ('CocoPanopticDataset', 'LVISV1Dataset', 'Objects365V2Dataset'):
        dataset = dict(type=name, data_root=str(root), ann_file='annotations/panoptic.json')
        check_dataset(dataset)


def test_checking_leaves_the_config_as_it_is(root):
    """Some of mmdet's detectors edit the config they are built from."""
    cfg = load_config(mmdet_config('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'))
    init_default_scope('mmdet')
    before = cfg.model.to_dict()
    build_model(cfg), build_model(cfg)
    assert cfg.model.to_dict() == before


def test_images(root):
    (root / 'train' / '000003.jpg').unlink()
    (root / 'train' / '000005.jpg').write_bytes(b'')
    assert_words(problem(DETECTOR, root), '2 of 16 images', 'train/000003.jpg (missing)')
    shutil.rmtree(root / 'train')
    assert_words(problem(DETECTOR, root), f'image folder {root}/train/ does not exist')


def test_corrupt_image_is_named_before_and_when_it_is_read(root):
    (root / 'train' / '000001.jpg').write_bytes(b'not an image')
    assert_words(problem(DETECTOR, root), '1 of 16 images', "train/000001.jpg (no image, begins with b'not ')")
    cfg = load_config(DETECTOR, options(DETECTOR, root))
    with pytest.raises(AssertionError, match=r'train/000001\.jpg'):
        DATASETS.build(cfg.train_dataloader.dataset)[0]


def test_categories(root):
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
        ('depth', 51, ['SEResNet has no depth 51', '[18, 34, 50, 101, 140, 152]']),
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
    check_config(plain, training=True, checkpoint=str(path))  # fine-tuning


def test_pretrained_backbone(root, tmp_path):
    path = tmp_path / 'a.pth'
    cfg = load_config(DETECTOR, options(DETECTOR, root))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    with pytest.raises(InputError, match=r'model\.backbone\.init_cfg: .*a\.pth does not exist.*ImageNet'):
        check_config(cfg, training=True)
    torch.save(dict(state_dict=weights(CLASSIFIER)), path)
    check_config(cfg, training=True)
    cfg.model.backbone.init_cfg.prefix = 'backbone'  # MMEngine adds the dot
    check_config(cfg, training=True)
    cfg.model.backbone.init_cfg.prefix = 'trunk.'
    with pytest.raises(InputError, match=r"model\.backbone\.init_cfg: .*a\.pth: no tensor's name starts with"):
        check_config(cfg, training=True)


def test_pretrained_parts_are_found_everywhere(root, tmp_path):
    missing = dict(type='Pretrained', checkpoint=str(tmp_path / 'no.pth'))
    cfg = load_config(DETECTOR, options(DETECTOR, root))
    cfg.model.backbone.init_cfg = [dict(type='Kaiming', layer='Conv2d'), missing]
    with pytest.raises(InputError, match=r'model\.backbone\.init_cfg: .*no\.pth does not exist'):
        check_config(cfg, training=True)
    cfg = load_config(DETECTOR, options(DETECTOR, root))
    cfg.model.neck = [
        cfg.model.neck,
        dict(type='ChannelMapper', in_channels=[64] * 5, out_channels=64, kernel_size=1, init_cfg=missing),
    ]
    with pytest.raises(InputError, match=r'model\.neck\.1\.init_cfg: .*no\.pth does not exist'):
        check_config(cfg, training=True)
    cfg = load_config(DETECTOR, options(DETECTOR, root))
    cfg.model.backbone.pretrained = missing['checkpoint']
    with pytest.raises(
        InputError, match=r'model\.backbone\.pretrained: .*--cfg-options model\.backbone\.pretrained=FILE'
    ):
        check_config(cfg, training=True)


def mmdet_config(name):
    return Path(mmdet.__file__).parent / '.mim' / 'configs' / name


def test_pretrained_parts_that_only_their_parents_can_build(tmp_path):
    """Without a type, or with arguments that a parent adds."""
    path = tmp_path / 'a.pth'
    cfg = load_config(mmdet_config('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'))
    use_scope(cfg)
    cfg.model.backbone.init_cfg = None
    cfg.model.encoder.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    cfg.model.bbox_head.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='bbox_head')
    model = build_model(cfg)
    with pytest.raises(InputError, match=r'model\.encoder\.init_cfg: .*a\.pth does not exist'):
        check_pretrained(cfg, model)
    torch.save(model.encoder.state_dict(), path)
    with pytest.raises(InputError, match=r'model\.bbox_head\.init_cfg: '):
        check_pretrained(cfg, model)
    weights = {f'bbox_head.{name}': w for name, w in model.bbox_head.state_dict().items()}
    torch.save(weights | model.encoder.state_dict(), path)
    check_pretrained(cfg, model)


@pytest.mark.parametrize('kind', ['se_mm.SEResNet', 'ResNet'])
def test_frozen_layers_need_weights(root, tmp_path, kind):
    """Of backbones here and of mmdet's."""
    frozen = {f'model.backbone.{key}': value for key, value in dict(type=kind, frozen_stages=1, norm_eval=True).items()}
    message = problem(DETECTOR, root, **frozen)
    assert '\n' not in message
    assert_words(message, '--cfg-options model.backbone.frozen_stages=-1 model.backbone.norm_eval=False', 'load_from')
    message = problem(DETECTOR, root, **frozen | {'model.backbone.norm_eval': False})
    assert_words(message, '--cfg-options model.backbone.frozen_stages=-1, or')

    cfg = load_config(DETECTOR, options(DETECTOR, root) | frozen)
    torch.save(dict(state_dict=weights(DETECTOR, **frozen)), tmp_path / 'a.pth')
    check_config(cfg, training=True, checkpoint=str(tmp_path / 'a.pth'))
    check_config(cfg, training=False)
    for part in (cfg.model.backbone, cfg.model):
        part.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.')
        if part is cfg.model:
            part.init_cfg.pop('prefix')
        check_config(cfg, training=True)
        part.init_cfg = None


def test_frozen_layers_of_semi_supervised_detectors(tmp_path):
    """Student and teacher are built of one part of the config, under their own names."""
    cfg = load_config(mmdet_config('soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'))
    use_scope(cfg)
    check_frozen(cfg, build_model(cfg))
    cfg.model.detector.backbone.init_cfg = None
    with pytest.raises(InputError, match=r'--cfg-options model\.detector\.backbone\.frozen_stages=-1 '):
        check_frozen(cfg, build_model(cfg))


def test_group_norms_are_never_frozen(root):
    check_config(
        load_config(
            DETECTOR,
            options(DETECTOR, root)
            | {'model.backbone.norm_eval': True, 'model.backbone.norm_cfg': dict(type='GN', num_groups=8)},
        ),
        training=True,
    )


def test_backbones_that_have_to_be_trained_first(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = problem(CONFIGS / 'faster_rcnn_se_x50_32x4d_coco.py', root)
    assert_words(message, 'work_dirs/se_x50_32x4d_imagenet/epoch_100.pth does not exist', 'train the backbone first')


def test_tool_prints_one_line_and_writes_nothing(run, tmp_path, tmp_path_factory):
    broken = tmp_path_factory.mktemp('configs') / 'broken.py'
    broken.write_text('model = dict(')
    code, output = run(sys.executable, TOOLS / 'train.py', DETECTOR)
    assert code == 1 and output.strip().splitlines()[-1].startswith(
        'error: data_root data/drawn_shapes/ does not exist'
    )
    assert 'Traceback' not in output and not list(tmp_path.iterdir())
    for arguments, words in (
        (['train.py', 'no.py'], 'error: config no.py does not exist'),
        (['train.py', CONFIGS / '_base_' / 'schedule_1x.py'], 'has no model'),
        (['train.py', DETECTOR, '--compile'], 'compile: torch.compile needs a C++ compiler on a CPU'),
        (['train.py', broken], 'broken.py cannot be read'),
        (['train.py', DETECTOR, '--cfg-options', 'optim_wrapper.type=AmpOptimWrapper'], 'needs a GPU: add --amp'),
        (['train.py', DETECTOR, '--cfg-options', 'optim_wrapper=None'], 'has no optim_wrapper'),
        (['train.py', DETECTOR, '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'], 'no auto_scale_lr'),
    ):
        tool, *arguments = arguments
        environment = dict(CUDA_VISIBLE_DEVICES='', CXX='no-compiler')
        fork = '--compile' not in arguments  # torch reads CXX when it is imported
        code, output = run(sys.executable, TOOLS / tool, *arguments, **environment, fork=fork)
        assert code == 1 and words in output.strip().splitlines()[-1] and 'Traceback' not in output
    assert not list(tmp_path.iterdir())

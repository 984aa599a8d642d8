"""Work dirs as a training and an evaluation leave them, without training."""

import json

from conftest import CONFIGS
from se_mm.evaluation.coco import coco_stats
from se_mm.utils.config import load_config

DETECTORS = [CONFIGS / 'quickstart' / f'{name}.py' for name in ('faster_rcnn_r18_shapes', 'faster_rcnn_se_r18_shapes')]
CLASSIFIERS = [CONFIGS / 'quickstart' / f'{name}.py' for name in ('r18_scenes', 'se_r18_scenes')]
BOX_SCORES = (0.9, 0.29)  # of the true box of an object, and of one a pixel beside it


def many_scenes(scenes):
    """Lines of a config that tests on the validation images 60 times, loaded one by one: time for Ctrl-C."""
    (scenes / 'many.txt').write_text((scenes / 'places365_val.txt').read_text() * 60)
    return """
place = dict(data_root='data/drawn_scenes', data_prefix='val_256', ann_file='many.txt')
dataset = dict(_delete_=True, type='CustomDataset', pipeline={{_base_.test_pipeline}}, **place)
test_dataloader = dict(batch_size=1, dataset=dataset)
"""


def step(iteration, loss, epoch=None, seconds=0.5):
    entry = dict(lr=0.1, loss=loss, time=seconds, iter=iteration, step=iteration)
    return entry | ({} if epoch is None else dict(epoch=epoch))


def write_log(folder, entries, time='20260101_000000', cfg=None):
    """The log of a training, and its config if one is given."""
    path = folder / time / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    if cfg is not None:
        cfg.dump(path.with_name('config.py'))


def write_evaluation(folder, config, metrics, images=8):
    folder.mkdir(parents=True, exist_ok=True)
    content = dict(
        config=str(config), checkpoint=dict(path=f'{folder}/epoch_2.pth', sha256=f'hash of {folder}'),
        dataset=dict(images=images), metrics=metrics, command='test.py', processes=2, device='cpu',
        date='2026-01-01T00:00:00+00:00', versions=dict(torch='2.0'),
    )  # fmt: skip
    (folder / 'metrics.json').write_text(json.dumps(content))


def write_run(folder, config, data_root, offset=0.0):
    """A run of a config of the quickstart on drawn data: two epochs, an evaluation, and its predictions.

    A detector finds every object, with a box beside it that is less sure; a classifier answers category 0.
    """
    cfg = load_config(config, {'test_dataloader.dataset.data_root': str(data_root), 'randomness.seed': 1})
    folder.mkdir(parents=True)
    cfg.dump(folder / config.name)
    detector = config in DETECTORS
    result = 'coco/bbox_mAP' if detector else 'scene_error/top1'
    entries = [step(10, 2.0 + offset, 1), {result: 0.5, 'step': 1}, step(20, 1.0 + offset, 2), {result: 0.7, 'step': 2}]
    write_log(folder, entries, cfg=cfg)
    if detector:
        annotations = data_root / 'annotations' / 'val.json'
        boxes = []
        for item in json.loads(annotations.read_text())['annotations']:
            x, y, w, h = item['bbox']
            for score, place in zip(BOX_SCORES, ([x, y, w, h], [x + 1, y, w, h])):
                boxes.append(dict(image_id=item['image_id'], bbox=place, score=score, category_id=item['category_id']))
        (folder / 'predictions.bbox.json').write_text(json.dumps(boxes))
        stats = coco_stats(str(annotations), str(folder / 'predictions.bbox.json'))
        metrics = {f'bbox_{k}': v if v is None else v - offset for k, v in stats.items()}
        write_evaluation(folder, config, metrics)
    else:
        labels = [int(line.split()[1]) for line in (data_root / 'places365_val.txt').read_text().splitlines()]
        first = int(10 * offset)  # runs with another offset answer otherwise
        answers = [
            dict(index=i, truth=label, answers=[first, first + 1], scores=[0.75, 0.25])
            for i, label in enumerate(labels)
        ]
        (folder / 'predictions.label.json').write_text(json.dumps(answers))
        write_evaluation(folder, config, {'scene_error/top1': 50 + offset, 'scene_error/top5': 10.0}, len(labels))
    return folder

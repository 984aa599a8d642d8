from mmengine.config import Config

from se_mm.engine.results import coco_evaluator, save_predictions

COCO = dict(type='CocoMetric', ann_file='a.json', metric=['bbox', 'segm'])


def test_coco_evaluators_in_lists():
    """Alone in a list, or beside evaluators of other kinds."""
    for evaluator in (COCO, [COCO], [dict(type='VOCMetric'), COCO]):
        cfg = Config(dict(test_evaluator=evaluator, default_scope='mmdet'))
        assert save_predictions(cfg, 'work/predictions') == ['bbox', 'segm']
        found = coco_evaluator(cfg)
        assert found.format_only and found.outfile_prefix == 'work/predictions' and found.ann_file == 'a.json'
    for evaluator in (None, [], [COCO, COCO], dict(type='VOCMetric')):
        cfg = Config(dict(test_evaluator=evaluator, default_scope='mmdet'))
        assert coco_evaluator(cfg) is None and save_predictions(cfg, 'work/predictions') == []

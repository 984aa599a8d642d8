from mmengine.config import Config

from se_mm.engine.results import coco_evaluator, kinds_to_save

COCO = dict(type='CocoMetric', ann_file='a.json', metric=['bbox', 'segm'])


def test_coco_evaluators_in_lists():
    """Alone in a list, or beside evaluators of other kinds."""
    for evaluator in (COCO, [COCO], [dict(type='VOCMetric'), COCO]):
        cfg = Config(dict(test_evaluator=evaluator, default_scope='mmdet'))
        assert kinds_to_save(cfg) == ['bbox', 'segm'] and coco_evaluator(cfg).ann_file == 'a.json'
        assert not coco_evaluator(cfg).get('format_only')
    for evaluator in (None, [], [COCO, COCO], dict(type='VOCMetric')):
        cfg = Config(dict(test_evaluator=evaluator, default_scope='mmdet'))
        assert coco_evaluator(cfg) is None and kinds_to_save(cfg) == []

# The small Faster R-CNN of the quickstart, with its optimiser, on BCCD, 364 photographs of blood cells, from random
# weights. Nothing was tuned, but the epochs: 60 instead of 36, for both networks, before the first run of the study.
_base_ = '../quickstart/faster_rcnn_r18_shapes.py'

classes = ('RBC', 'WBC', 'Platelets')  # red and white blood cells
scale = (320, 240)
data_root = 'data/bccd/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
model = dict(backbone=dict(type='se_mm.SEResNet', with_se=False))
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=dict(classes=classes), pipeline=train_pipeline),
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=dict(classes=classes), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

epochs = 60
train_cfg = dict(max_epochs=epochs, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=70),
    dict(type='CosineAnnealingLR', T_max=epochs, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=36))
log_processor = dict(window_size=36)

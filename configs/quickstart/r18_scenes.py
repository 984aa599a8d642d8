# ResNet-18 of half width on drawn scenes of 96 pixels, small enough for two CPU cores and a minute.
_base_ = '../_base_/places365.py'

model = dict(
    backbone=dict(depth=18, stem_channels=32, base_channels=32),
    head=dict(num_classes=8, in_channels=256),
)
data_preprocessor = dict(num_classes=8)
data_root = 'data/drawn_scenes'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=96, crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=108, edge='short'),
    dict(type='CenterCrop', crop_size=96),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

epochs = 12
train_cfg = dict(max_epochs=epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=epochs, by_epoch=True, convert_to_iter_based=True)
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(max_keep_ckpts=2, save_best=None))
randomness = dict(seed=0)

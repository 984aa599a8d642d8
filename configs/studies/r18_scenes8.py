# ResNet-18 on 1,233 photographs of eight categories of scenes, in crops of 96 pixels, from random weights until the
# training error has converged. Two recipes were tried with this plain network and seed 100: learning rate 0.05 with
# weight decay 5e-4, and the SE paper's for ImageNet fitted to 32 images a step, 0.02 with 1e-4. Their errors were equal
# after 65 epochs; the former had the lower training loss.
_base_ = '../_base_/places365.py'
model = dict(
    backbone=dict(
        _delete_=True, type='se_mm.SEResNet', depth=18, out_indices=(3,), norm_eval=False, with_se=False, init_cfg=None
    ),
    head=dict(in_channels=512),
)
data_root = 'data/scenes8'
load = dict(type='LoadImageFromFile')
train_pipeline = [
    load,
    dict(type='RandomResizedCrop', scale=96, crop_ratio_range=(0.25, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    load,
    dict(type='ResizeEdge', scale=108, edge='short'),
    dict(type='CenterCrop', crop_size=96),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

epochs, warmup = 80, 5
train_cfg = dict(max_epochs=epochs, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.05, nesterov=True, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=warmup, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=epochs - warmup, begin=warmup, end=epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=32)
# The last checkpoint is what is evaluated: the best of several would be chosen on the test images.
default_hooks = dict(logger=dict(interval=39), checkpoint=dict(max_keep_ckpts=2, save_best=None))
log_processor = dict(window_size=39)
randomness = dict(seed=0)

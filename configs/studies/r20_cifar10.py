# ResNet-20 of arXiv 1512.03385 on image files of CIFAR-10. The optimiser is that of wide residual networks
# (arXiv 1605.07146): SGD with Nesterov's momentum, lr 0.1, weight decay 5e-4. 24 epochs instead of 164: a warm-up of 2
# epochs and a cosine in place of steps. Nothing was tuned.
_base_ = '../_base_/cifar10.py'
model = dict(
    backbone=dict(type='se_mm.SEResNetCIFAR', arch='resnet20', with_se=False),
)
data_preprocessor = dict(to_rgb=True)  # image files are read as BGR, CIFAR-10's own files as RGB

data_root = 'data/cifar10_images'
load = dict(type='LoadImageFromFile')
train_pipeline = [
    load,
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
# leaves CIFAR-10's own images as they are; for photographs
to_32 = [dict(type='ResizeEdge', scale=32, edge='short', interpolation='area'), dict(type='CenterCrop', crop_size=32)]
test_pipeline = [load, *to_32, dict(type='PackInputs')]
images = dict(_delete_=True, type='CustomDataset', data_root=data_root)
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(images, data_prefix='train', pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(images, data_prefix='test', pipeline=test_pipeline),
)
test_dataloader = val_dataloader

epochs, warmup = 24, 2
train_cfg = dict(max_epochs=epochs, val_interval=3)
optim_wrapper = dict(optimizer=dict(nesterov=True, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=warmup, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=epochs - warmup, begin=warmup, end=epochs, convert_to_iter_based=True),
]
# The last checkpoint is what is evaluated: the best of several would be chosen on the test images.
default_hooks = dict(logger=dict(interval=130), checkpoint=dict(max_keep_ckpts=2, save_best=None))
log_processor = dict(window_size=130)
randomness = dict(seed=0)

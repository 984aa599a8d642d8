# ResNet-18 with ImageNet stem on small images (arXiv 2304.06502, table 2): batch 32, random-resized crop 224, flip,
# normalised; tested on the centre crop of a short side of 256 as in its table 3. Optimiser and epochs are not stated:
# SGD with ResNet's ImageNet recipe, scaled to the batch.
_base_ = '../_base_/cifar10.py'
model = dict(
    backbone=dict(type='se_mm.SEResNet', depth=18, out_indices=(3,), norm_eval=False, with_se=False),
    head=dict(in_channels=512),
)
train_pipeline = [
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='ResizeEdge', scale=256, edge='short'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.0125))
param_scheduler = dict(milestones=[30, 60, 90])
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=32)

# ImageNet-1k with the recipe of the paper (arXiv 1709.01507 v4, section 5.1): SGD, momentum 0.9,
# batch 1024, lr 0.6 divided by 10 every 30 epochs, 100 epochs, He initialisation, random-resized
# crop 224 and flip; tested on the centre crop of a short side of 256. Weight decay is not stated
# there; 1e-4 is that of ResNet (arXiv 1512.03385).
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    'mmpretrain::_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)
val_evaluator = dict(_delete_=True, type='se_mm.TopKError', topk=(1, 5))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.6, momentum=0.9, weight_decay=1e-4),
)
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024, enable=False)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=3, save_best='error/top1', rule='less'))
# Batch norms see one GPU's images each: averaged statistics are what validation and checkpoints get.
custom_hooks = [dict(type='SyncBuffersHook')]

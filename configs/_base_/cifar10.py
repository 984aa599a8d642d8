# CIFAR-10 with the recipe of ResNet (arXiv 1512.03385, section 4.2), which the paper refers to: pad 4, random
# crop, flip; SGD, batch 128, lr 0.1 divided by 10 after 32k and 48k of 64k steps; weight decay 1e-4.
_base_ = ['mmpretrain::_base_/datasets/cifar10_bs16.py', 'mmpretrain::_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)
val_evaluator = dict(_delete_=True, type='se_mm.TopKError', topk=(1, 5))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[82, 123], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=164, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128, enable=False)
# Batch norms see one process' images each: averaged statistics are what validation and checkpoints get.
custom_hooks = [dict(type='SyncBuffersHook')]
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=3, save_best='error/top1', rule='less'))

# Variations of Squeeze and Excitation networks (arXiv 2304.06502), table 1: batch 64, Adadelta, lr 1.0 decayed by 0.7
# after every epoch, 50 epochs. No augmentation is mentioned.
_base_ = '../_base_/cifar10.py'
model = dict(
    _delete_=True,
    type='ImageClassifier',
    backbone=dict(type='se_mm.SECNN', num_classes=10, with_se=False),
    head=dict(type='ClsHead', loss=dict(type='CrossEntropyLoss', loss_weight=1.0)),
)
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=[dict(type='PackInputs')]))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adadelta', lr=1.0))
param_scheduler = dict(_delete_=True, type='StepLR', by_epoch=True, step_size=1, gamma=0.7)
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=64)

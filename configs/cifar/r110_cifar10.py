_base_ = '../_base_/cifar10.py'
model = dict(
    backbone=dict(type='se_mm.SEResNetCIFAR', arch='resnet110', with_se=False),
)
# 110 and more layers start with lr 0.01 for 400 steps.
param_scheduler = [
    dict(type='ConstantLR', factor=0.1, by_epoch=False, begin=0, end=400),
    dict(type='MultiStepLR', by_epoch=True, milestones=[82, 123], gamma=0.1),
]

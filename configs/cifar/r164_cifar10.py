_base_ = '../_base_/cifar10.py'
model = dict(
    backbone=dict(type='se_mm.SEResNetCIFAR', arch='resnet164', with_se=False),
    head=dict(in_channels=256),
)
# Starts with lr 0.01 for 400 steps, as all runs of its paper (arXiv 1603.05027).
param_scheduler = [
    dict(type='ConstantLR', factor=0.1, by_epoch=False, begin=0, end=400),
    dict(type='MultiStepLR', by_epoch=True, milestones=[82, 123], gamma=0.1),
]

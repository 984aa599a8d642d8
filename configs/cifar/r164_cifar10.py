_base_ = '../_base_/cifar10.py'
model = dict(
    backbone=dict(type='se_mm.SEResNetCIFAR', arch='resnet164', with_se=False),
    head=dict(in_channels=256),
)

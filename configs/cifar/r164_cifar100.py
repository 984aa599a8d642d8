_base_ = './r110_cifar100.py'
model = dict(backbone=dict(arch='resnet164'), head=dict(in_channels=256))

_base_ = './r110_cifar100.py'
model = dict(backbone=dict(with_se=True))

_base_ = './r110_cifar10.py'
model = dict(backbone=dict(with_se=True))

_base_ = './r164_cifar10.py'
model = dict(backbone=dict(with_se=True))

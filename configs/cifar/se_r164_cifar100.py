_base_ = './r164_cifar100.py'
model = dict(backbone=dict(with_se=True))

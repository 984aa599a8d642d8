_base_ = './se_r20_cifar10.py'
model = dict(backbone=dict(se_ratio=2))

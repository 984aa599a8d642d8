_base_ = './shake_shake26_2x96d_cifar10.py'
model = dict(backbone=dict(with_se=True))

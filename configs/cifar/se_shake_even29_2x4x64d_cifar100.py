_base_ = './shake_even29_2x4x64d_cifar100.py'
model = dict(backbone=dict(with_se=True))

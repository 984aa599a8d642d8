_base_ = './wrn16_8_cifar10.py'
model = dict(backbone=dict(with_se=True))

# One channel is left of the 16 in the first stage.
_base_ = './se_r8_cifar10.py'
model = dict(backbone=dict(se_ratio=16))

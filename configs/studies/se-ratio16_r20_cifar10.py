# One channel is left of the 16 in the first stage.
_base_ = './se_r20_cifar10.py'
model = dict(backbone=dict(se_ratio=16))

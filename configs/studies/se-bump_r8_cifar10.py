_base_ = './se_r8_cifar10.py'
model = dict(backbone=dict(se_cfg=dict(variant='bump')))

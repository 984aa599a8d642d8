_base_ = './r18_cifar10.py'
model = dict(backbone=dict(with_se=True, se_cfg=dict(variant='bump')))

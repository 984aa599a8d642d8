_base_ = './r18_cifar100.py'
model = dict(backbone=dict(with_se=True, se_cfg=dict(variant='slow_excite')))

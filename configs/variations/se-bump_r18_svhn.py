_base_ = './r18_svhn.py'
model = dict(backbone=dict(with_se=True, se_cfg=dict(variant='bump')))

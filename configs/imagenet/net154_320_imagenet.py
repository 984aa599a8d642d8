_base_ = './se_net154_320_imagenet.py'
model = dict(backbone=dict(with_se=False))

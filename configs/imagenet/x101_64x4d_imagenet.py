_base_ = './x101_32x4d_imagenet.py'
model = dict(backbone=dict(groups=64))

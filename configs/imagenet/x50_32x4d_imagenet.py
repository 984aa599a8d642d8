_base_ = '../_base_/imagenet.py'
model = dict(backbone=dict(type='ResNeXt', depth=50, groups=32, width_per_group=4))

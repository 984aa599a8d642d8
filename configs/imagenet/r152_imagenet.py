_base_ = '../_base_/imagenet.py'
model = dict(backbone=dict(depth=152))

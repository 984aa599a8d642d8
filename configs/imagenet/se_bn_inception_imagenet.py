_base_ = './bn_inception_imagenet.py'
model = dict(backbone=dict(with_se=True))

_base_ = './shufflenet_imagenet.py'
model = dict(backbone=dict(with_se=True))

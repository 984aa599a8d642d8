_base_ = './mobilenet_imagenet.py'
model = dict(backbone=dict(with_se=True))

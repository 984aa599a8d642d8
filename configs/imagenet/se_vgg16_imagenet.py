_base_ = './vgg16_imagenet.py'
model = dict(backbone=dict(with_se=True))

_base_ = './inception_resnet_v2_imagenet.py'
model = dict(backbone=dict(with_se=True))

# WRN-50-2-bottleneck (arXiv 1605.07146, table 8): ResNet-50 with twice the channels in its 3x3 convolutions.
_base_ = '../_base_/imagenet.py'
model = dict(backbone=dict(base_channels=128, expansion=2, stem_channels=64))

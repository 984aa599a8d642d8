_base_ = './wrn50_imagenet.py'
# norm_eval=False: batch norms learn, as in mmpretrain's ResNet.
model = dict(backbone=dict(type='se_mm.SEResNet', norm_eval=False))

# SENet-154 without SE: its plain twin, for which the paper has no numbers.
_base_ = './se_net154_imagenet.py'
model = dict(backbone=dict(with_se=False))

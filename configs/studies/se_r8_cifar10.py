# Reduction ratio 4: 16 channels have 4 in the middle. The SE paper's 16 would leave one.
_base_ = './r8_cifar10.py'
model = dict(backbone=dict(with_se=True, se_ratio=4))

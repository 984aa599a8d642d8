_base_ = './cnn_cifar10.py'
model = dict(backbone=dict(with_se=True, se_cfg=dict(variant='slow_excite')))

# Gates that start near 0.88 instead of 0.5.
_base_ = './se_r20_cifar10.py'
model = dict(backbone=dict(se_cfg=dict(gate_bias=2.0)))

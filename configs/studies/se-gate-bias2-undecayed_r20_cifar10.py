# Gates that start near 0.88, and biases that weight decay does not take back to 0.
_base_ = './se-gate-bias2_r20_cifar10.py'
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'se_layer.conv2.conv.bias': dict(decay_mult=0.0)}))

# ResNet-8 with the data and the optimiser of r20_cifar10: one block a stage, 6 epochs with a warm-up of 1 epoch. Small
# enough for three seeds of every variant on two CPU cores. Nothing was tuned.
_base_ = './r20_cifar10.py'
model = dict(backbone=dict(arch='resnet8'))

epochs, warmup = 6, 1
train_cfg = dict(max_epochs=epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=warmup, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=epochs - warmup, begin=warmup, end=epochs, convert_to_iter_based=True),
]

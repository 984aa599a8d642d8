_base_ = './shake_shake26_2x96d_cifar10.py'
model = dict(
    backbone=dict(arch='shake_even29_2x4x64d'),
    head=dict(num_classes=100, in_channels=1024),
)
mean = (129.304, 124.070, 112.434)
data_preprocessor = dict(num_classes=100, mean=mean, std=[68.170, 65.392, 70.418])
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4, pad_val=mean),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='se_mm.Cutout', size=8, fill=mean),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32, dataset=dict(type='CIFAR100', data_root='data/cifar100', pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.025, weight_decay=5e-4))
auto_scale_lr = dict(base_batch_size=32)

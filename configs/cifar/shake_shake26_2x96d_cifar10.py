_base_ = '../_base_/cifar10.py'
model = dict(
    backbone=dict(type='se_mm.SEShakeShake', arch='shake_shake26_2x96d', with_se=False),
    head=dict(in_channels=384),
)
# Recipes of Shake-Shake (arXiv 1705.07485) and Cutout (arXiv 1708.04552). The authors' code normalises first, so that
# padding and square have the mean colour. The authors trained on 2 GPUs, with batch statistics of half a step each.
mean = (125.307, 122.961, 113.8575)
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4, pad_val=mean),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='se_mm.Cutout', size=16, fill=mean),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=0.2, nesterov=True))
epochs = 1800
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=epochs, by_epoch=True, convert_to_iter_based=True)
train_cfg = dict(max_epochs=epochs)

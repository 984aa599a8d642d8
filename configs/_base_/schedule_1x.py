train_cfg_1x = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler_1x = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]

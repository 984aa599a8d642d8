# Table 4 of the paper. Not mirrored, as digits have a direction; mean and deviation are those of half the range.
_base_ = './r18_cifar10.py'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
train_pipeline = [dict(type='RandomResizedCrop', scale=224), dict(type='PackInputs')]
train_dataloader = dict(
    dataset=dict(_delete_=True, type='se_mm.SVHN', data_root='data/svhn', split='train', pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(_delete_=True, type='se_mm.SVHN', data_root='data/svhn', split='test', pipeline=_base_.test_pipeline)
)
test_dataloader = val_dataloader

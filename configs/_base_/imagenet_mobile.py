# ImageNet-1k for small networks (arXiv 1709.01507 v4, section 5.1): batch 256, lr 0.1, about 400 epochs, divided by 10
# when the validation error stops falling; after how many epochs is not stated, nor is weight decay: 10, and 4e-5 as
# in ShuffleNet (arXiv 1707.01083).
_base_ = './imagenet.py'
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=4e-5))
param_scheduler = dict(
    _delete_=True, type='ReduceOnPlateauLR', monitor='error/top1', rule='less', factor=0.1, patience=10, by_epoch=True
)
train_cfg = dict(max_epochs=400)
auto_scale_lr = dict(base_batch_size=256)

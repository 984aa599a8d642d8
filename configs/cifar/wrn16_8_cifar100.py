_base_ = '../_base_/cifar100.py'
model = dict(
    backbone=dict(type='se_mm.SEResNetCIFAR', arch='wrn16_8', with_se=False),
    head=dict(in_channels=512),
)
# Recipe of wide residual networks (arXiv 1605.07146).
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4, nesterov=True))
param_scheduler = dict(milestones=[60, 120, 160], gamma=0.2)
train_cfg = dict(max_epochs=200)

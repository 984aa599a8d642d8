# SE-ResNet-50 as in the ablations (arXiv 1709.01507 v4, section 6): lr 0.1, label smoothing, SE without biases.
# The learning rate is divided by 10 three times, here in the fixed form of 270 epochs. The batch is not stated;
# 256 suits this rate. Gates of ReLU and tanh would not train with norms that start at 0.
_base_ = './imagenet.py'
model = dict(
    backbone=dict(type='se_mm.SEResNet', norm_eval=False, se_cfg=dict(bias=False), zero_init_residual=False),
    head=dict(loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = dict(milestones=[125, 200, 250])
train_cfg = dict(max_epochs=270)
auto_scale_lr = dict(base_batch_size=256)

_base_ = '../_base_/imagenet.py'
# The backbone holds the three fully connected layers.
model = dict(
    backbone=dict(_delete_=True, type='se_mm.SEVGG', depth=16, num_classes=1000, with_se=False),
    neck=None,
    head=dict(_delete_=True, type='ClsHead', loss=dict(type='CrossEntropyLoss', loss_weight=1.0), topk=(1, 5)),
)

_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(_delete_=True, type='se_mm.SEBNInception', with_se=False),
    head=dict(in_channels=1024),
)

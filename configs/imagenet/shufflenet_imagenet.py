_base_ = '../_base_/imagenet_mobile.py'
model = dict(
    backbone=dict(_delete_=True, type='se_mm.SEShuffleNet', groups=3, with_se=False),
    head=dict(in_channels=960),
)

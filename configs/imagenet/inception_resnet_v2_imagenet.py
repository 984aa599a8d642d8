_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(_delete_=True, type='se_mm.SEInceptionResNetV2', with_se=False),
    neck=dict(type='se_mm.AveragePoolingDropout', p=0.2),
    head=dict(in_channels=1536),
)

# 299 crops (section 5.1), tested on the centre crop of a short side of 341, the same ratio as 256 to 224.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=299),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=341, edge='short'),
    dict(type='CenterCrop', crop_size=299),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

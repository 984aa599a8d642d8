# Faster R-CNN on conv4 features, with conv5 on each region, as in the first version of the SE paper (arXiv 1709.01507
# v1, section 6.3), which refers to ResNet's (arXiv 1512.03385, appendix A): COCO 2014, 80k images to train and 40k to
# test on, one image a GPU, 240k steps with lr 0.001 and 80k with 0.0001, batch norms fixed, RoI pooling, 300 proposals.
# Numbers that neither paper gives are Faster R-CNN's (arXiv 1506.01497): images of 600 pixels, four scales of anchors,
# 128 regions an image. RPN and head are trained together.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50-caffe-c4.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(style='pytorch', init_cfg=dict(checkpoint='torchvision://resnet50')),
    rpn_head=dict(anchor_generator=dict(scales=[4, 8, 16, 32])),
    roi_head=dict(
        shared_head=dict(style='pytorch', init_cfg=dict(checkpoint='torchvision://resnet50')),
        bbox_roi_extractor=dict(roi_layer=dict(_delete_=True, type='RoIPool', output_size=14)),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(max_per_img=300)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=1,
    dataset=dict(
        ann_file='annotations/instances_train2014.json', data_prefix=dict(img='train2014/'), pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    dataset=dict(
        ann_file='annotations/instances_val2014.json', data_prefix=dict(img='val2014/'), pipeline=test_pipeline
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/coco/annotations/instances_val2014.json')
test_evaluator = val_evaluator

# 320k steps of 8 of the 82,081 images that have boxes, the last 80k with a tenth of the rate.
optim_wrapper = dict(optimizer=dict(lr=0.001))
train_cfg = dict(max_epochs=31)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=31, by_epoch=True, milestones=[23], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=8)

_base_ = './faster_rcnn_x50_32x4d_coco.py'
# No SE-ResNeXt in OpenMMLab's format is released: train configs/imagenet/se_x50_32x4d_imagenet.py first.
model = dict(
    backbone=dict(
        type='se_mm.SEResNeXt',
        init_cfg=dict(checkpoint='work_dirs/se_x50_32x4d_imagenet/epoch_100.pth', prefix='backbone.'),
    )
)

_base_ = './faster_rcnn_r101_coco.py'
model = dict(
    backbone=dict(
        type='se_mm.SEResNet',
        init_cfg=dict(checkpoint='mmcls://se-resnet101', prefix='backbone.'),
    )
)

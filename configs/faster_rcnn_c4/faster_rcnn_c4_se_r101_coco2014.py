_base_ = './faster_rcnn_c4_r101_coco2014.py'
model = dict(
    backbone=dict(type='se_mm.SEResNet', init_cfg=dict(checkpoint='mmcls://se-resnet101', prefix='backbone.')),
    roi_head=dict(
        shared_head=dict(type='se_mm.SEResLayer', init_cfg=dict(checkpoint='mmcls://se-resnet101', prefix='backbone.'))
    ),
)

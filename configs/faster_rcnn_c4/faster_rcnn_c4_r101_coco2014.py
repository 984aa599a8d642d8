_base_ = './faster_rcnn_c4_r50_coco2014.py'
model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')),
    roi_head=dict(shared_head=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101'))),
)

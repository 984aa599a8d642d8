_base_ = './faster_rcnn_x50_32x4d_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://resnext101_32x4d')))

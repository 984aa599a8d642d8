_base_ = './faster_rcnn_r18_shapes.py'
model = dict(backbone=dict(type='se_mm.SEResNet'))

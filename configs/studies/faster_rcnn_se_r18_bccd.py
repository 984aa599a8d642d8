_base_ = './faster_rcnn_r18_bccd.py'
model = dict(backbone=dict(with_se=True))

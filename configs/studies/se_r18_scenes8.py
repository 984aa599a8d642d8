_base_ = './r18_scenes8.py'
model = dict(backbone=dict(with_se=True))

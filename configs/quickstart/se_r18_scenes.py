_base_ = './r18_scenes.py'
model = dict(backbone=dict(type='se_mm.SEResNet', norm_eval=False))

_base_ = '../_base_/ablation.py'
model = dict(backbone=dict(se_ratio=2))

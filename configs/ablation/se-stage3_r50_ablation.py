_base_ = '../_base_/ablation.py'
model = dict(backbone=dict(with_se=(False, True, False, False)))

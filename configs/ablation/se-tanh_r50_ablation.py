_base_ = '../_base_/ablation.py'
model = dict(backbone=dict(se_cfg=dict(act_cfg=(dict(type='ReLU'), dict(type='Tanh')))))

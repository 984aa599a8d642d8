_base_ = ['../faster_rcnn_r50_coco.py', '../_base_/schedule_1x.py']
train_cfg = {{_base_.train_cfg_1x}}
param_scheduler = {{_base_.param_scheduler_1x}}

# Faster R-CNN with FPN on COCO 2017, 2x schedule. The paper (arXiv 1709.01507 v4, section 5.3)
# trained 2x as well: 180k iterations of 16 images, lr 0.02, steps at 120k and 160k.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_2x.py',
    'mmdet::_base_/default_runtime.py',
]

_base_ = '../_base_/faster_rcnn_c4_coco2014.py'

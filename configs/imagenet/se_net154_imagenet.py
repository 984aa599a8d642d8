# With dropout and label smoothing (appendix of the paper). There, batch norms are frozen for the last epochs: not done
# here, as it is not said for how many.
_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(_delete_=True, type='se_mm.SENet', depth=154, out_indices=(3,), norm_eval=False),
    neck=dict(type='se_mm.AveragePoolingDropout', p=0.2),
    head=dict(loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
)

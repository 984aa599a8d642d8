_base_ = './x50_32x4d_imagenet.py'
# norm_eval=False: batch norms learn, as in mmpretrain's ResNeXt.
model = dict(
    backbone=dict(
        _delete_=True,
        type='se_mm.SEResNeXt',
        depth=50,
        groups=32,
        base_width=4,
        num_stages=4,
        out_indices=(3,),
        style='pytorch',
        norm_eval=False,
    )
)

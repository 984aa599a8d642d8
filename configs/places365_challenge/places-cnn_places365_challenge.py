# Places-365-CNN (https://github.com/lishen-shirley/Places2-CNNs): as ResNet-152, but with 8, 12, 23 and 3 units in its
# stages and a stem of three 3x3 convolutions.
_base_ = './r152_places365_challenge.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='se_mm.SEResNet',
        depth=140,
        deep_stem=True,
        stem_channels=128,
        stem_pool_ceil_mode=True,
        out_indices=(3,),
        norm_eval=False,
        with_se=False,
    )
)

# Places365-Standard, 256-pixel images, 224 crop. The paper (arXiv 1709.01507 v4, section 5.2) trained
# on Places365-Challenge from scratch and does not give the recipe: this is its ImageNet recipe.
_base_ = './imagenet.py'
model = dict(head=dict(num_classes=365))
data_preprocessor = dict(num_classes=365)

data_root = 'data/places365'
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='se_mm.Places365',
        data_root=data_root,
        split='train_standard',
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='se_mm.Places365',
        data_root=data_root,
        split='val',
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(prefix='scene_error')
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='scene_error/top1'))

"""Test-time augmentation: several views of each test image, whose predictions are merged."""

from __future__ import annotations

from copy import deepcopy

from mmengine.config import Config

from se_mm.datasets.corner_crop import CORNERS
from se_mm.utils import InputError
from se_mm.utils.config import leaf_datasets, type_name

AVERAGED_SCORES = dict(type='mmpretrain.AverageClsScoreTTA')
MERGED_BOXES = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')  # for the boxes
KINDS = ('tta', 'flip', 'ten-crop')


def merged_views(cfg: Config, kind: str = 'tta') -> tuple[list[dict], dict]:
    """Views of the test images of a detector or a classifier, and how their predictions are merged.

    Args:
        cfg: the config, which stays as it is.
        kind: 'flip' for an image and its mirror image; 'ten-crop' for the corners and the centre of both, the centre
            crop being the config's (Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural
            Networks, section 4.1); 'tta' for ``tta_pipeline`` and ``tta_model`` of the config, or flipping.

    Returns:
        The pipeline of the test data set, and the config of the model around the config's model. Classifiers average
        their scores, which are softmaxes of logits unless the head has others.

    Raises:
        InputError: no test data set, or several; a detector of masks; ten crops of a detector's images, or of images
            that are not cropped.
    """
    pipeline = tested_dataset(cfg).pipeline
    if kind == 'ten-crop':
        return _ten_crop(cfg, pipeline), AVERAGED_SCORES
    pack = deepcopy(pipeline[-1])
    model = AVERAGED_SCORES
    if cfg.default_scope == 'mmdet':
        pack['meta_keys'], model = META_KEYS, MERGED_BOXES
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    flipped = [*pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]
    given = cfg if kind == 'tta' else {}
    if not given.get('tta_model') and any('mask_head' in part for part in (cfg.model, cfg.model.get('roi_head') or {})):
        raise InputError(f'--tta: {cfg.filename} finds masks, and MMDetection merges boxes only: leave out --tta')
    return given.get('tta_pipeline') or flipped, given.get('tta_model') or model


def tested_dataset(cfg: Config) -> dict:
    """The config of the test data set, inside its wrappers.

    Raises:
        InputError: there is none, or there are several.
    """
    datasets = list(leaf_datasets((cfg.get('test_dataloader') or {}).get('dataset')))
    if len(datasets) != 1:
        raise InputError(f'--tta: test_dataloader of {cfg.filename} has {len(datasets)} data sets: give it one')
    return datasets[0]


def _ten_crop(cfg: Config, pipeline: list[dict]) -> list[dict]:
    """The crops come in the order of torchvision's ``ten_crop``, which mirrors before it crops."""
    if cfg.default_scope == 'mmdet':
        raise InputError(f'--tta ten-crop: {cfg.filename} is of a detector, which needs whole images: set --tta flip')
    at = next((i for i, transform in enumerate(pipeline) if type_name(transform) == 'CenterCrop'), None)
    if at is None:
        raise InputError(
            f'--tta ten-crop: test_dataloader of {cfg.filename} has no CenterCrop, whose crop_size the crops need: '
            'set --tta flip'
        )
    flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
    size = pipeline[at]['crop_size']
    crops = [dict(type='se_mm.CornerCrop', crop_size=size, corner=corner) for corner in CORNERS] + [pipeline[at]]
    rest = [[transform] for transform in pipeline[at + 1 :]]
    return [*pipeline[:at], dict(type='TestTimeAug', transforms=deepcopy([flips, crops, *rest]))]

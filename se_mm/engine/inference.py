"""Inference on image files, by the inferencers of mmdet and mmpretrain, with weights that are read as data."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from mmcv import imread
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS
from torch import Tensor, nn

from se_mm.analysis.complexity import input_size
from se_mm.datasets.images import check_images
from se_mm.utils import InputError
from se_mm.utils.config import build_model, leaf_datasets, type_name, use_scope

from .weight_checks import check_checkpoint

SMALLEST = 256  # pixels of the shorter edge of a classified image when it is drawn


class Prediction(NamedTuple):
    """What a network says of an image.

    Attributes:
        summary: for reading.
        content: for programs.
        picture: the image with its labels.
    """

    summary: str
    content: dict
    picture: Path


def classes_of(cfg: Config, checkpoint: dict) -> list[str] | None:
    """Names of the classes: those that a checkpoint was trained with, else the config's, else the data set's."""
    meta = checkpoint.get('meta')
    meta = meta.get('dataset_meta') if isinstance(meta, dict) else None
    dataset = next(leaf_datasets(cfg.test_dataloader.dataset))
    kind = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    for source in (meta, dataset.get('metainfo'), getattr(kind, 'METAINFO', None)):
        classes = source.get('classes', source.get('CLASSES')) if isinstance(source, dict) else None
        if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
            return list(classes)
    return None


def build_whole_model(cfg: Config) -> nn.Module:
    """The model of a config with its data preprocessor, as MMEngine's runner builds it.

    Raises:
        InputError: of :func:`use_scope` and :func:`build_model`.
    """
    use_scope(cfg)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    take_image_files(cfg)
    return build_model(cfg)


def take_image_files(cfg: Config) -> None:
    """Change a config whose test data are arrays in RGB, as CIFAR's and SVHN's are, for image files, which are BGR.

    The files are read, turned to RGB and, unless the pipeline sets a size, resized to that of the data set's images. A
    config that reads files stays as it is.
    """
    steps = test_steps(cfg) if cfg.get('test_dataloader') else []
    if not steps or any(type_name(step).startswith('Load') for step in steps):
        return
    reading = [dict(type='LoadImageFromFile')]
    if not any(word in type_name(step) for step in steps for word in ('Resize', 'Crop')):
        height, width = input_size(cfg)
        reading.append(dict(type='Resize', scale=(width, height)))
    (*_, dataset) = leaf_datasets(cfg.test_dataloader.dataset)
    dataset['pipeline'] = [*reading, *dataset['pipeline']]
    images = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    cfg.model['data_preprocessor'] = {**images, 'to_rgb': not images.get('to_rgb', False)}


def prepared_images(cfg: Config, model: nn.Module, images: list[str]) -> list[Tensor]:
    """Image files as a model's backbone gets them, each (1, C, H, W).

    Args:
        cfg: config of a classifier or a detector, with ``test_dataloader``, whose pipeline prepares the images.
        model: built of it.
        images: files.

    Raises:
        InputError: an image is missing or damaged.
    """
    found = (pseudo_collate([sample]) for sample in pipeline_outputs(cfg, images))
    return [model.data_preprocessor(batch, False)['inputs'] for batch in found]


def normalised(images: Tensor, metadata: Mapping[str, str]) -> Tensor:
    """Images (N, C, H, W) as OpenCV reads them, BGR, in the way that the metadata of an exported file say."""
    mean, std = (torch.tensor(json.loads(metadata[key]))[:, None, None] for key in ('mean', 'std'))
    images = images.flip(1) if metadata['channels'] == 'RGB' else images
    return (images.float() - mean) / std


def pipeline_outputs(cfg: Config, images: list[str]) -> Iterator[dict]:
    """What the test pipeline of a config makes of image files: ``inputs``, uint8 (C, H, W), and ``data_samples``.

    Raises:
        InputError: an image is missing or damaged.
    """
    check_images(images, 'the command line')
    take_image_files(cfg)
    pipeline = Compose(test_steps(cfg))
    return (pipeline(dict(img_path=image, img_id=i)) for i, image in enumerate(images))


def normalised_images(cfg: Config, images: list[str], metadata: Mapping[str, str]) -> Iterator[Tensor]:
    """Image files as the metadata of an exported file say, each (1, C, H, W).

    Args:
        cfg: config with ``test_dataloader``, whose pipeline resizes the images.
        images: files.
        metadata: ``channels``, 'RGB' or 'BGR', and ``mean`` and ``std`` as JSON.

    Raises:
        InputError: an image is missing or damaged; the config has no ``test_dataloader``.
    """
    if not cfg.get('test_dataloader'):
        raise InputError(f'{cfg.filename} has no test_dataloader, whose pipeline prepares images')
    for sample in pipeline_outputs(cfg, images):
        yield normalised(sample['inputs'][None], metadata)


def test_steps(cfg: Config) -> list[dict]:
    """The test pipeline of a config, without loading of annotations."""
    (*_, dataset) = leaf_datasets(cfg.test_dataloader.dataset)
    return [step for step in dataset['pipeline'] if type_name(step) != 'LoadAnnotations']


def picture_of(image: str, cfg: Config, folder: Path) -> Path:
    """Where the inferencer of a config writes the picture of an image."""
    if cfg.default_scope == 'mmpretrain':
        return folder / Path(Path(image).stem).with_suffix('.png')
    return folder / 'vis' / Path(image).name


def check_device(device: str) -> None:
    """Check that tensors can be made on a device.

    Raises:
        InputError: naming the device.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise InputError(f'--device {device}: {str(error).splitlines()[0]}') from error


def predictor(
    cfg: Config, checkpoint: str, folder: Path, *, device: str | None = None, score: float = 0.3
) -> Callable[[str], Prediction]:
    """A function that classifies an image, or finds objects in an image, and draws the answer.

    Args:
        cfg: config of a classifier or a detector; its test pipeline prepares the images.
        checkpoint: file of the whole model's weights.
        folder: for the pictures.
        device: 'cpu' or 'cuda:0', None for the first GPU if there is one.
        score: boxes below it are left out.

    Returns:
        The function takes the path of an image.

    Raises:
        InputError: the checkpoint is missing, damaged or of another model; the config has no ``test_dataloader``.
    """
    if not cfg.get('test_dataloader'):
        raise InputError(f'{cfg.filename} has no test_dataloader, whose pipeline prepares images')
    model = build_whole_model(cfg)
    classes = classes_of(cfg, check_checkpoint(checkpoint, model, training=False))
    device = device or get_device()
    if cfg.default_scope == 'mmpretrain':
        return _classifier(cfg, model, classes, folder, device)
    return _detector(cfg, model, classes, folder, device, score)


def _classifier(
    cfg: Config, model: nn.Module, classes: list[str] | None, folder: Path, device: str
) -> Callable[[str], Prediction]:
    from mmpretrain import ImageClassificationInferencer

    model._config = cfg  # where the inferencer looks for the pipeline
    inferencer = ImageClassificationInferencer(model, device=device, classes=classes)

    def classify(image: str) -> Prediction:
        small = min(imread(image).shape[:2]) < SMALLEST
        (answer,) = inferencer(image, show_dir=folder, resize=SMALLEST if small else None)
        scores = answer['pred_scores']
        best = [
            {'class': classes[label] if classes else str(label), 'label': int(label), 'score': float(scores[label])}
            for label in scores.argsort()[::-1][:5]
        ]
        summary = ', '.join(f'{entry["class"]} {entry["score"]:.2f}' for entry in best[:3])
        return Prediction(summary, dict(image=image, classes=best), picture_of(image, cfg, folder))

    return classify


def _detector(
    cfg: Config, model: nn.Module, classes: list[str] | None, folder: Path, device: str, score: float
) -> Callable[[str], Prediction]:
    from mmdet.apis import DetInferencer

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of random weights: the weights come next
        inferencer = DetInferencer(cfg, device=device, show_progress=False)
    inferencer.model.load_state_dict(model.state_dict())
    if classes:
        inferencer.visualizer.dataset_meta = dict(inferencer.visualizer.dataset_meta, classes=classes)

    def detect(image: str) -> Prediction:
        (found,) = inferencer(image, out_dir=str(folder), pred_score_thr=score)['predictions']
        boxes = [
            {'class': classes[label] if classes else str(label), 'label': label, 'score': value, 'bbox': bbox}
            for label, value, bbox in zip(found['labels'], found['scores'], found['bboxes'])
            if value >= score
        ]
        counts = Counter(box['class'] for box in boxes).most_common()
        summary = ', '.join(f'{count} {name}' for name, count in counts) or 'nothing'
        return Prediction(summary, dict(image=image, boxes=boxes), picture_of(image, cfg, folder))

    return detect

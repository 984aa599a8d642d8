"""Export a classifier, a detector or a backbone to ONNX, and check the file on images.

The network is prepared for inference as by tools/deploy.py. The input, images, is a batch of normalised images,
(N, C, H, W), float32; a detector takes one image and pads it. The outputs are the scores before softmax of a
classifier; the boxes (K, 4), scores (K,) and labels (K,) of a detector; the maps of a backbone's stages. The file's
metadata say how images are prepared, and name the classes.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from torch import nn

import se_mm  # noqa: F401  registers the backbones
from se_mm.conversion.onnx_file import RUNTIMES, check_installed, export_onnx, largest_share, largest_shift
from se_mm.conversion.traceable import is_detector, traceable
from se_mm.engine import guard
from se_mm.engine.inference import build_whole_model, classes_of, normalised_images, test_steps
from se_mm.engine.weight_checks import check_checkpoint
from se_mm.models.base import Backbone
from se_mm.utils import InputError, written_whole
from se_mm.utils.config import load_config, type_name
from se_mm.version import __version__
from se_mm.weights import fetch, load_backbone

LARGE = 288  # pixels of a dynamic example: a map of a single row would be taken for a constant


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('checkpoint', help='checkpoint of the model; with --backbone anything that init_cfg takes')
    parser.add_argument('out', type=Path, help='file to write, .onnx')
    parser.add_argument('--backbone', action='store_true', help='only the backbone, with the feature maps as output')
    parser.add_argument('--size', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='[224 224]')
    parser.add_argument('--batch', type=int, default=1, help='number of images; 1 for detectors [1]')
    parser.add_argument(
        '--dynamic', action='store_true', help='images of any size, and any number of them unless for a detector'
    )
    parser.add_argument('--opset', type=int, default=18, help='version of the operators, at least 18 [18]')
    parser.add_argument(
        '--runtimes', nargs='+', choices=list(RUNTIMES), default=['onnxruntime'], help='check with [onnxruntime]'
    )
    parser.add_argument(
        '--images', nargs='+', default=[], metavar='IMAGE', help='files to check on [images of random numbers]'
    )
    parser.add_argument('--tolerance', type=float, default=1e-4, help='largest difference, of the largest value [1e-4]')
    args = parser.parse_args()
    if args.opset < 18 or min(args.batch, *args.size) < 1:
        parser.error('--opset starts at 18; --batch and --size at 1')
    if args.out.suffix != '.onnx':
        parser.error(f'{args.out}: give a file with the suffix .onnx')
    if args.images and args.backbone:
        parser.error('--images is for whole models: leave out --backbone')
    return args


def check_packages(args):
    check_installed(*args.runtimes)
    if Version(torch.__version__) < Version('2.6'):
        raise InputError(f'torch {torch.__version__} cannot export batch norms this way: use 2.6 or newer')
    import onnx

    if args.opset > (newest := onnx.defs.onnx_opset_version()):
        raise InputError(f'--opset {args.opset}: the newest that onnx {onnx.__version__} knows is {newest}')


def build(args, cfg):
    """The network with its weights, and the names of its classes."""
    if args.backbone:
        cfg.model.backbone.pop('init_cfg', None)
        backbone = getattr(build_whole_model(cfg), 'backbone', None)
        if not isinstance(backbone, Backbone):
            raise InputError(f'{args.config}: its backbone {type(backbone).__name__} is none of this package')
        load_backbone(backbone, args.checkpoint)
        return backbone.eval(), None
    model = build_whole_model(cfg)
    checkpoint = check_checkpoint(str(fetch(args.checkpoint)), model, training=False)
    return model.eval(), classes_of(cfg, checkpoint) if cfg.get('test_dataloader') else None


def deployed(network):
    """A copy for inference, and the same weights as they were."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, Backbone):  # or a shared head
            module.switch_to_deploy()
    return copied


def preparation(cfg, classes, detector):
    """What a program has to know of the file, lists and dicts as JSON."""
    images = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    order = 'RGB' if images.get('bgr_to_rgb') or images.get('to_rgb') else 'BGR'
    normalises = images.get('mean') is not None
    mean, std = (list(images[key]) if normalises else [value] for key, value in (('mean', 0.0), ('std', 1.0)))
    known = dict(se_mm_version=__version__, channels=order, mean=mean, std=std)
    if classes:
        known.update(classes=classes)
    if cfg.get('test_dataloader'):
        steps = [step for step in test_steps(cfg) if not type_name(step).startswith(('Load', 'Pack'))]
        known.update(pipeline=[dict(step, type=type_name(step)) for step in steps])
    if detector:
        test_cfg = cfg.model.get('test_cfg') or {}
        known.update(test_cfg=test_cfg.to_dict() if hasattr(test_cfg, 'to_dict') else test_cfg)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}


def random_images(args, channels, detector):
    """Images of random numbers, of other sizes too where the file takes them, by name."""
    height, width = args.size
    sizes = [(args.batch, channels, height, width)]
    if args.dynamic:
        sizes += [(1 if detector else 3, channels, height + 33, width), (1, channels, height, width + 1)]
    return {'x'.join(map(str, size)): torch.randn(size, generator=torch.Generator().manual_seed(0)) for size in sizes}


def image_files(args, cfg, metadata):
    """Image files as the metadata say, by name."""
    found = dict(zip(args.images, normalised_images(cfg, args.images, metadata)))
    for path, image in found.items():
        height, width = image.shape[-2:]
        if not args.dynamic and (height, width) != tuple(args.size):
            raise InputError(f'{path} has {height}x{width} pixels for the network: give --size {height} {width}')
    return found


@torch.no_grad()
def expected_outputs(model, images):
    """What PyTorch computes: for a detector by MMDetection."""
    if not is_detector(model):
        outputs = model(images)
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
    from mmdet.structures import DetDataSample

    height, width = images.shape[-2:]
    divisor = model.data_preprocessor.pad_size_divisor
    edges, value = (0, -width % divisor, 0, -height % divisor), model.data_preprocessor.pad_value
    padded = nn.functional.pad(images, edges, value=value)
    shapes = dict(img_shape=(height, width), ori_shape=(height, width), batch_input_shape=tuple(padded.shape[-2:]))
    sample = DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0), pad_shape=shapes['batch_input_shape']))
    found = model.predict(padded, [sample], rescale=False)[0].pred_instances
    return [found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()]


def check(args, content, model, images):
    """Print how far runtimes are from PyTorch.

    Raises:
        InputError: further than --tolerance, or a runtime cannot run the file.
    """
    runs = {}
    for runtime in args.runtimes:
        try:
            runs[runtime] = RUNTIMES[runtime](content)
        except Exception as error:  # each runtime has its own errors
            raise InputError(f'{args.out} is not written: {runtime} cannot load it: {error}') from error
    table, largest, found = Table('images', 'runtime', 'largest difference', 'objects'), 0.0, 0
    for name, batch in images.items():
        try:
            expected = expected_outputs(model, batch)
            actual = {runtime: run(batch.numpy()) for runtime, run in runs.items()}
        except Exception as error:  # each runtime has its own errors
            raise InputError(f'{args.out} is not written: images {name} cannot be run: {error}') from error
        for runtime, outputs in actual.items():
            if is_detector(model):
                difference, objects = largest_shift(outputs, expected, max(batch.shape[-2:])), str(len(expected[1]))
                found += len(expected[1])
            else:
                difference, objects = largest_share(outputs, expected), ''
            table.add_row(name, runtime, f'{difference:.1e}', objects)
            largest = max(largest, difference) if difference == difference else np.inf
    Console(width=None if Console().is_terminal else 160).print(table)
    if is_detector(model) and not found:
        print('note: no objects were found, so nothing was compared: give photographs with objects, --images')
    if not largest <= args.tolerance:
        raise InputError(f'{args.out} is not written: differences are larger than --tolerance {args.tolerance}')


def main():
    args = parse_args()
    if args.out.exists():
        raise InputError(f'{args.out} is already there: give another name')
    check_packages(args)
    cfg = load_config(args.config)
    model, classes = build(args, cfg)
    try:
        network = deployed(model) if args.backbone else traceable(deployed(model))
    except ValueError as error:
        rest = '; --backbone exports the backbone' if isinstance(getattr(model, 'backbone', None), Backbone) else ''
        raise InputError(f'{args.config} has no export: {error}{rest}') from error
    detector = is_detector(model)
    if detector and args.batch != 1:
        raise InputError(f'--batch {args.batch}: a detector is exported for one image')
    metadata = preparation(cfg, classes, detector)
    channels = cfg.model.backbone.get('in_channels', 3)
    images = image_files(args, cfg, metadata) if args.images else random_images(args, channels, detector)
    if detector:
        outputs = ['boxes', 'scores', 'labels']
    else:
        outputs = [f'stage{i + 1}' for i in model.out_indices] if args.backbone else ['scores']
    dynamic = () if not args.dynamic else (2, 3) if detector else (0, 2, 3)
    number = 2 if 0 in dynamic else args.batch  # one image would be taken for a constant
    size = [max(edge, LARGE) for edge in args.size] if args.dynamic else args.size
    example = torch.zeros(number, channels, *size)
    content = export_onnx(network, example, outputs, dynamic=dynamic, opset=args.opset, metadata=metadata)
    check(args, content, model, images)
    with written_whole(args.out) as temporary:
        temporary.write_bytes(content)
    print(f'written: {args.out} (outputs {", ".join(outputs)})')


if __name__ == '__main__':
    with guard():
        main()

"""Export a classifier, or the backbone of any model, to ONNX, and check it with onnxruntime.

The input is a batch of normalised images, (N, C, H, W), float32. The file's metadata say the order of their channels,
and which mean and std (0 to 255, in that order) the config has. A classifier's output are its scores before softmax,
a backbone's the maps of its stages.
"""

import argparse
import logging
import warnings

import numpy as np
import torch
from mmengine.registry import MODELS
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from torch import nn

import se_mm  # noqa: F401  registers the backbones
from se_mm.engine import guard
from se_mm.engine.weight_checks import check_checkpoint
from se_mm.models.base import Backbone
from se_mm.utils import InputError, written_whole
from se_mm.utils.config import load_config, use_scope
from se_mm.weights import load_backbone


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('checkpoint', help='checkpoint of the model; with --backbone anything that init_cfg takes')
    parser.add_argument('out', help='file to write, .onnx')
    parser.add_argument('--backbone', action='store_true', help='only the backbone, with the feature maps as output')
    parser.add_argument('--size', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='[224 224]')
    parser.add_argument('--batch', type=int, default=1, help='number of images [1]')
    parser.add_argument('--dynamic', action='store_true', help='any number of images of any size')
    parser.add_argument('--opset', type=int, default=18, help='version of the operators, at least 18 [18]')
    parser.add_argument('--tolerance', type=float, default=1e-4, help='largest difference, of the largest value [1e-4]')
    args = parser.parse_args()
    if args.opset < 18 or min(args.batch, *args.size) < 1:
        parser.error('--opset starts at 18; --batch and --size at 1')
    return args


def build(args):
    """The model, the channels of its input, the names of its outputs and the config of its images."""
    cfg = load_config(args.config)
    use_scope(cfg)
    images = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    channels = cfg.model.backbone.get('in_channels', 3)
    if args.backbone:
        cfg.model.backbone.pop('init_cfg', None)
        model = MODELS.build(cfg.model.backbone)
        if not isinstance(model, Backbone):
            raise InputError(f'{args.config}: its backbone {type(model).__name__} is none of this package')
        load_backbone(model, args.checkpoint)
        return model.eval(), channels, [f'stage{i + 1}' for i in model.out_indices], images
    if cfg.default_scope != 'mmpretrain':
        raise InputError(f'{args.config}: whole detectors are exported by mmdeploy; the backbone by --backbone')
    model = MODELS.build(cfg.model)
    check_checkpoint(args.checkpoint, model, training=False)
    return model.eval(), channels, ['scores'], images


def export(model: nn.Module, channels, args, outputs):
    """The ONNX model of the traced network."""
    size = (args.batch, channels, *args.size)
    dynamic = None
    if args.dynamic:
        size = (2, *size[1:])  # one image would be taken for a constant
        dynamic = ({axis: torch.export.Dim.AUTO for axis in (0, 2, 3)},)
    # It warns of rounded sizes of dynamic inputs; largest_differences tries such sizes.
    logging.getLogger('torch.fx.experimental.symbolic_shapes').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.export.export(model, (torch.zeros(size),), dynamic_shapes=dynamic)
        program = torch.onnx.export(
            traced, input_names=['images'], output_names=outputs, opset_version=args.opset, dynamo=True, verbose=False
        )
    return program.model_proto


def largest_differences(content, model, channels, args):
    """Largest difference of onnxruntime's outputs from the model's, as a share of the largest value, by input size."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    height, width = args.size
    sizes = [(args.batch, channels, height, width)]
    if args.dynamic:
        sizes += [(3, channels, height + 33, width), (1, channels, height, width + 1)]
    differences = {}
    for size in sizes:
        images = torch.randn(size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model(images)
        expected = expected if isinstance(expected, tuple) else (expected,)
        actual = session.run(None, dict(images=images.numpy()))
        differences[size] = max(
            float(np.abs(a - e.numpy()).max() / e.abs().max()) for a, e in zip(actual, expected, strict=True)
        )
    return differences


def main():
    args = parse_args()
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"exporting needs {error.name}: pip install 'se_mm[onnx]'") from error
    model, channels, outputs, images = build(args)
    if Version(torch.__version__) < Version('2.6'):
        raise InputError(f'torch {torch.__version__} cannot export batch norms this way: use 2.6 or newer')
    exported = export(model, channels, args, outputs)
    if images.get('mean') is not None:
        order = 'RGB' if images.get('bgr_to_rgb') or images.get('to_rgb') else 'BGR'
        onnx.helper.set_model_props(exported, dict(channels=order, **{k: str(images[k]) for k in ('mean', 'std')}))
    content = exported.SerializeToString()
    differences = largest_differences(content, model, channels, args)
    table = Table('input', 'largest difference')
    for size, difference in differences.items():
        table.add_row('x'.join(map(str, size)), f'{difference:.1e}')
    Console().print(table)
    if not max(differences.values()) <= args.tolerance:
        raise InputError(f'{args.out} is not written: onnxruntime differs by more than --tolerance {args.tolerance}')
    with written_whole(args.out) as temporary:
        temporary.write_bytes(content)
    print(f'written: {args.out} (outputs {", ".join(outputs)})')


if __name__ == '__main__':
    with guard():
        main()

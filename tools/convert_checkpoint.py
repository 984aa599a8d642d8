"""Convert weights of SE networks between projects, and say what became of every tensor.

SRC is a file of any format that is read here, or timm://NAME and other names that init_cfg takes. DST gets
a classifier's state dict in OpenMMLab's names (backbone., head.fc), which mmpretrain's SEResNet reads too,
or in timm's; .safetensors for that format. --list shows the released weights with their arguments.
"""

import argparse
from pathlib import Path

from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table

import se_mm  # noqa: F401  registers the backbones
from se_mm.conversion import openmmlab_state, save_weights, timm_state
from se_mm.engine import guard
from se_mm.models.architecture import constructor_arguments, is_residual
from se_mm.registry import MODELS
from se_mm.utils import InputError, write_json
from se_mm.weights import OWN, expected_arguments, fetch, load_weights, read_checkpoint, recognise, released
from se_mm.weights.formats import FORMATS
from se_mm.weights.loading import examples


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', nargs='?', help='checkpoint')
    parser.add_argument('dst', nargs='?', help='file to write')
    parser.add_argument('--to', choices=['openmmlab', 'timm'], default='openmmlab', help='names to write [openmmlab]')
    parser.add_argument('--prefix', help="of the backbone's names in SRC [found]")
    parser.add_argument('--hash', action='store_true', help='append 8 digits of the SHA-256 to the name of DST')
    parser.add_argument('--json', metavar='FILE', help='also write the report as JSON')
    parser.add_argument('--list', action='store_true', help='list released weights and their arguments')
    parser.add_argument(
        '--unsafe-pickle', action='store_true', help='DANGEROUS: run whatever code SRC holds, if you trust its author'
    )
    args = parser.parse_args()
    if not args.list and not args.dst:
        parser.error('give SRC and DST, or --list')
    return args


def as_python(arguments):
    """A dict the way it is written in a config."""
    return f'dict({", ".join(f"{key}={value!r}" for key, value in arguments.items())})'


def list_released(console):
    table = Table('checkpoint', 'backbone', 'top-1', 'top-5', 'size', 'images', title='Released weights, error in %')
    for entry in released():
        arguments = dict(entry['arguments'], type=f'se_mm.{entry["arguments"]["type"]}')
        errors = [f'{error:.2f}' for error in entry['error']]
        table.add_row(entry['checkpoint'], as_python(arguments), *errors, str(entry.get('size', 224)), entry['images'])
    console.print(table)


def backbone_of(weights, source):
    """The config of the network here that weights are of."""
    if weights.format.name == 'Caffe' and 'stem.3.conv.weight' in weights.tensors:
        return dict(type='se_mm.SEBNInception')
    if not is_residual(weights.tensors):
        raise InputError(f'{source}: not weights of a ResNet, ResNeXt or SENet: layer1.0.conv2.weight is missing')
    arguments = expected_arguments(weights)
    others = ['deformable convolutions'] if any(arguments['stage_with_dcn']) else []
    if arguments['norm'] not in (None, 'BN'):
        others.append(f'norms of type {arguments["norm"]}')
    if others:
        raise InputError(
            f'{source}: networks with {" and ".join(others)} are not converted, because no tensor shows their '
            'arguments. Load the file by the config of its training; tools/publish_model.py writes it without the '
            'optimizer'
        )
    if arguments['depth'] is None:
        raise InputError(f'{source}: no network here has {arguments["blocks"]} blocks, as its {arguments["type"]} has')
    return constructor_arguments(arguments)


def main():
    args, console = parse_args(), Console(width=None)
    if args.list:
        return list_released(Console(width=None if Console().is_terminal else 250))
    source = fetch(args.src)
    if Path(args.dst).resolve() == source.resolve():
        raise InputError(f'{args.dst} is the file to convert: give another name')
    content = read_checkpoint(source, args.unsafe_pickle)
    weights = recognise(content['state_dict'], args.src, args.prefix, content.get('meta'))
    if weights.format is OWN:
        known = ', '.join(dict.fromkeys(format.name for format in FORMATS))
        raise InputError(f'{args.src}: the names of its tensors are of no known format; known are {known}')
    backbone = backbone_of(weights, args.src)
    init_default_scope('se_mm')
    with_se = {} if weights.have_se else dict(with_se=False)
    report = load_weights(MODELS.build({**backbone, **with_se}), weights, args.src)
    normalisation = weights.format.normalisation
    images = dict(mean=normalisation['mean'], std=normalisation['std'], bgr_to_rgb=True) if normalisation else None
    state = openmmlab_state(weights) if args.to == 'openmmlab' else timm_state(weights, args.src)
    meta = dict(source=args.src, format=weights.format.name, backbone=backbone, data_preprocessor=images)
    path = save_weights(state, args.dst, meta, args.hash)
    table = Table(show_header=False)
    rows = dict(
        source=f'{args.src} ({weights.format.name})',
        architecture=as_python(backbone) + ('' if weights.have_se else ', plain: SE would start afresh'),
        data_preprocessor=f'{as_python(images)}, in mmpretrain to_rgb=True' if images else 'the file does not say',
        loaded=f'{report.loaded} tensors of the backbone, {len(weights.head)} of the classifier',
        renamed=str(report.renamed),
        transposed=str(report.transposed),
    )
    if weights.format.caffe_style is None and is_residual(weights.tensors):
        rows['assumed'] = "style='pytorch', stem_pool_ceil_mode=False, SE last in its unit: the file does not say"
    rows['left over in the file'] = examples(weights.left_over)
    rows['fresh in the backbone'] = examples(report.fresh)
    rows['written'] = f'{path}: {len(state)} tensors with the names of {args.to}'
    for row in rows.items():
        table.add_row(*row)
    console.print(table)
    if args.json:
        write_json(args.json, dict(meta, fresh=report.fresh, left_over=weights.left_over, written=str(path)))


if __name__ == '__main__':
    with guard():
        main()

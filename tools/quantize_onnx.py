"""Make an int8 file of an exported classifier or detector, with the gates of SE in float.

    python tools/quantize_onnx.py CONFIG FILE.onnx OUT.onnx --images IMAGE...

FILE.onnx is of tools/export_onnx.py. onnxruntime's quantiser looks at the images, a few hundred of the training, which
the config's test pipeline resizes. The error of OUT has to be measured afterwards.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import se_mm  # noqa: F401  registers the data sets
from se_mm.conversion.onnx_file import check_installed
from se_mm.conversion.quantised import in_int8, quantised
from se_mm.engine import guard
from se_mm.engine.inference import normalised_images
from se_mm.utils import InputError, written_whole
from se_mm.utils.config import load_config, use_scope


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or PACKAGE::NAME of an installed package')
    parser.add_argument('file', type=Path, help='what export_onnx.py has written')
    parser.add_argument('out', type=Path, help='file to write, .onnx')
    parser.add_argument(
        '--images', nargs='+', required=True, metavar='IMAGE', help='files, or folders of .jpg and .png'
    )
    args = parser.parse_args()
    if args.out.suffix != '.onnx':
        parser.error(f'{args.out}: give a file with the suffix .onnx')
    return args


def image_files(paths):
    """The files, those in folders included."""
    files = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.rglob('*') if file.suffix.lower() in ('.jpg', '.jpeg', '.png'))
        if path.is_dir() and not inside:
            raise InputError(f'--images {path}: this folder has no .jpg and no .png')
        files += inside or [path]
    return [str(file) for file in files]


def fitting(images, shape, file):
    """Arrays of images that the file's input takes, one at a time."""
    for path, image in images:
        if any(isinstance(own, int) and own != given for own, given in zip(shape, image.shape)):
            sizes = ' and '.join('x'.join(map(str, size)) for size in (shape, image.shape))
            raise InputError(f'{path} does not fit into {file}, {sizes}: export with --dynamic or another --size')
        yield image.numpy()


def main():
    args = parse_args()
    if args.out.exists():
        raise InputError(f'{args.out} is already there: give another name')
    check_installed('onnxruntime')
    import onnxruntime

    if not args.file.is_file():
        raise InputError(f'{args.file} does not exist')
    cfg = load_config(args.config)
    use_scope(cfg)
    try:
        session = onnxruntime.InferenceSession(exported := args.file.read_bytes())
        known = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # of many kinds
        raise InputError(f'{args.file} cannot be read as an ONNX file: {error}') from error
    if 'se_mm_version' not in known:
        raise InputError(f'{args.file} was not written by tools/export_onnx.py: export the network with that tool')
    if any(number for number, _ in in_int8(exported).values()):
        raise InputError(f'{args.file} is in int8 already: give the file that tools/export_onnx.py has written')
    files, shape = image_files(args.images), session.get_inputs()[0].shape
    with Progress(console=Console(stderr=True)) as progress:
        images = zip(files, normalised_images(cfg, files, known))
        images = progress.track(images, total=len(files), description='calibrating')
        content = quantised(exported, fitting(images, shape, args.file))
    with written_whole(args.out) as temporary:
        temporary.write_bytes(content)
    counts = in_int8(content)
    for kind, (number, whole) in counts.items():
        print(f'{kind}: {number} of {whole} convolutions and matrix products in int8')
    print(f'written: {args.out}')


if __name__ == '__main__':
    with guard():
        main()

"""Top-1 error of exported classifiers over a config's test data, in float32 and int8, as docs/deploy.md quotes it.

    python .dev_scripts/int8_error.py CONFIG FILE.onnx... --data-root DIR --calibrate IMAGE...

Int8 is by onnxruntime's quantiser with and without the gates of SE, run by onnxruntime and by OpenVINO; and by NNCF,
where it is installed, run by OpenVINO.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

import se_mm  # noqa: F401  registers the data sets
from se_mm.conversion.onnx_file import RUNTIMES
from se_mm.conversion.quantised import in_int8, quantised
from se_mm.engine.inference import normalised, normalised_images
from se_mm.utils.config import load_config, use_scope


def test_data(cfg, known):
    """All images as the file says, (N, C, H, W), and their classes."""
    images, labels = [], []
    for batch in Runner.build_dataloader(cfg.test_dataloader):
        images += batch['inputs']
        labels += [sample.gt_label.item() for sample in batch['data_samples']]
    return normalised(torch.stack(images), known).numpy(), np.array(labels)


def error(run, images, labels):
    found = np.concatenate([run(np.ascontiguousarray(batch))[0] for batch in np.array_split(images, 100)])
    return 100 * float((found.argmax(1) != labels).mean())


def by_nncf(content, images, gates):
    """A function that runs a network in int8 by NNCF, and the number of its quantisers."""
    import nncf
    import openvino

    core, skipped = openvino.Core(), None if gates else nncf.IgnoredScope(patterns=['.*se_layer.*'], validate=False)
    data = nncf.Dataset(images, lambda image: dict(images=image.numpy()))
    model = nncf.quantize(core.read_model(content), data, ignored_scope=skipped, subset_size=len(images))
    quantisers = sum(operator.get_type_name() == 'FakeQuantize' for operator in model.get_ops())
    compiled = core.compile_model(model, 'CPU')
    return lambda batch: [compiled(batch)[0]], quantisers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('files', type=Path, nargs='+')
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--calibrate', nargs='+', required=True)
    args = parser.parse_args()
    cfg = load_config(args.config, dict(data_root=args.data_root))
    use_scope(cfg)
    table = Table('file', 'int8 by', 'gates', 'run by', 'top-1 error, %', 'in int8: gates, others')
    for file in args.files:
        content = file.read_bytes()
        known = onnxruntime.InferenceSession(content).get_modelmeta().custom_metadata_map
        images, labels = test_data(cfg, known)
        seen = list(normalised_images(cfg, args.calibrate, known))
        for runtime in RUNTIMES:
            table.add_row(file.stem, '-', 'float', runtime, f'{error(RUNTIMES[runtime](content), images, labels):.2f}')
        for gates in (False, True):
            int8 = quantised(content, [image.numpy() for image in seen], gates=gates)
            counts = ', '.join(f'{number} of {whole}' for number, whole in in_int8(int8).values())
            for runtime in RUNTIMES:
                value = error(RUNTIMES[runtime](int8), images, labels)
                table.add_row(file.stem, 'onnxruntime', 'int8' if gates else 'float', runtime, f'{value:.2f}', counts)
            try:
                run, quantisers = by_nncf(content, seen, gates)
            except ImportError:
                continue
            value = error(run, images, labels)
            table.add_row(
                file.stem, 'NNCF', 'int8' if gates else 'float', 'openvino', f'{value:.2f}', f'{quantisers} quantisers'
            )
    Console(width=160).print(table)


if __name__ == '__main__':
    main()

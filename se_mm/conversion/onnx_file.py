"""Networks as ONNX files, in the form that runtimes and their quantisers know, and what runs such files."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor, nn

from se_mm.models import SELayer
from se_mm.models.gate_source import gate_source
from se_mm.utils import InputError

Run = Callable[[np.ndarray], Sequence[np.ndarray]]


def export_onnx(
    network: nn.Module,
    images: Tensor,
    outputs: Sequence[str],
    *,
    dynamic: Iterable[int] = (),
    opset: int = 18,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The content of an ONNX file.

    Nodes have the names of their modules, so that the pattern ``se_layer`` finds the gates of SE, those of other
    projects too. Gates of this project are 1x1 convolutions of maps (N, C, 1, 1). The network's SE layers keep this
    form, with the same weights.

    Args:
        network: in evaluation mode, a function of images alone.
        images: an example, (N, C, H, W).
        outputs: names of what the network returns; the input is called images.
        dynamic: axes of the input that may have any size.
        opset: version of the operators.
        metadata: what the file says of itself.

    Raises:
        InputError: the network cannot take such images.
    """
    se_layers = {path: module for path, module in network.named_modules() if gate_source(module) is not None}
    for module in se_layers.values():
        if isinstance(module, SELayer):
            module.use_maps()
    axes = {axis: torch.export.Dim.AUTO for axis in dynamic}
    # torch warns of sizes that are rounded: the caller tries some.
    logging.getLogger('torch.fx.experimental.symbolic_shapes').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            with torch.no_grad():
                network(images)
        except (RuntimeError, ValueError) as error:
            shape = 'x'.join(map(str, images.shape))
            raise InputError(f'{type(network).__name__} cannot take images of {shape}: {error}') from error
        try:
            traced = torch.export.export(network, (images,), dynamic_shapes=(axes,) if axes else None)
        except Exception as error:  # of many kinds
            raise InputError(f'torch.export cannot trace {type(network).__name__}: {error}') from error
        (given,) = [node for node in traced.graph.nodes if node.name == traced.graph_signature.user_inputs[0]]
        if fixed := [axis for axis in axes if isinstance(given.meta['val'].shape[axis], int)]:
            raise InputError(
                f'{type(network).__name__} takes one size of axis {fixed[0]} alone: leave out --dynamic, or try a '
                'larger --size'
            )
        program = torch.onnx.export(
            traced,
            input_names=['images'],
            output_names=list(outputs),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    _pool_by_means(program.model)
    _name_nodes(program.model, se_layers)
    program.model.metadata_props.clear()
    program.model.metadata_props.update(metadata or {})
    content = program.model_proto
    for node in content.graph.node:
        if node.op_type == 'GlobalAveragePool':
            del node.input[1:]  # the empty place of the axes
    return content.SerializeToString()


def _pool_by_means(model) -> None:  # noqa: ANN001  of onnx_ir, which is not always installed
    """Make means over H and W GlobalAveragePool: before ReduceMean, onnxruntime changes the layout of the map."""
    for node in model.graph:
        if node.op_type != 'ReduceMean' or len(node.inputs) < 2:
            continue
        x, axes = node.inputs
        keeps = 'keepdims' not in node.attributes or node.attributes['keepdims'].value == 1
        if not keeps or axes is None or axes.const_value is None or x.shape is None or len(x.shape) != 4:
            continue
        if sorted(axis % 4 for axis in axes.const_value.numpy().tolist()) == [2, 3]:
            node.op_type = 'GlobalAveragePool'
            node.attributes.clear()
            node.replace_input_with(1, None)
            if not axes.uses():
                model.graph.initializers.pop(axes.name, None)


def _name_nodes(model, se_layers: Iterable[str]) -> None:  # noqa: ANN001  of onnx_ir, which is not always installed
    """Name nodes and what they compute after modules, and leave out where on this machine their code is.

    Whatever the SE layers are called, ``se_layer`` is part of the names of their nodes.
    """
    others = [path for path in se_layers if 'se_layer' not in path]
    results = {value.name for value in model.graph.outputs}
    names = Counter()
    for node in model.graph:
        scopes = [scope.partition(': ')[0] for scope in node.metadata_props.get('namespace', '').split('/')]
        (module,) = scopes[-2:-1] or ['']
        for path in others:
            if module == path or module.startswith(f'{path}.'):
                module = module.replace(path, f'{path}.se_layer', 1)
        name = f'{module}/{node.op_type}'.lstrip('/')
        names[name] += 1
        node.name = name if names[name] == 1 else f'{name}_{names[name]}'
        for number, value in enumerate(node.outputs):
            if value.name not in results:
                value.name = f'{node.name}:{number}' if number else node.name
        node.metadata_props.clear()


def run_by_onnxruntime(content: bytes, threads: int = 0) -> Run:
    """A function that runs the content of an ONNX file by onnxruntime on the CPU; 0 threads are all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry('session.force_spinning_stop', '1')  # or threads wait busily between two runs
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})


def run_by_openvino(content: bytes, threads: int = 0) -> Run:
    """A function that runs the content of an ONNX file by OpenVINO on the CPU, in float32; 0 threads are all cores."""
    import openvino

    settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=threads)
    core = openvino.Core()
    model = core.compile_model(core.read_model(content), 'CPU', settings)
    return lambda images: [model(images)[output] for output in model.outputs]


RUNTIMES = dict(onnxruntime=run_by_onnxruntime, openvino=run_by_openvino)
EXTRAS = dict(onnx='onnx', onnxscript='onnx', onnxruntime='onnx', openvino='openvino')  # what installs a package
LEAST = dict(onnx='1.16', onnxscript='0.2', onnxruntime='1.17', openvino='2025.0')  # as in setup.py


def check_installed(*runtimes: str) -> None:
    """Check that packages for exporting and runtimes can be imported, and that they are not too old.

    Raises:
        InputError: one cannot, or is; it says how to install the package.
    """
    for name in ('onnx', 'onnxscript', *runtimes):
        install = f"pip install --upgrade 'se_mm[{EXTRAS[name]}]'"
        try:
            version = importlib.import_module(name).__version__.partition('-')[0]
        except ImportError as error:
            raise InputError(f'exporting needs {error.name}: {install}') from error
        if Version(version) < Version(LEAST[name]):
            raise InputError(f'{name} {version} is too old, exporting needs {LEAST[name]} or newer: {install}')


def largest_share(actual: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> float:
    """Largest difference of arrays, each in the largest value of what is expected."""
    pairs = zip(actual, expected, strict=True)
    return float(np.max([np.abs(a - e).max() / np.maximum(np.abs(e).max(), 1e-30) for a, e in pairs]))  # NaN if one is


def largest_shift(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], size: int) -> float:
    """Largest difference between detections, whose order may differ where scores are equal.

    Args:
        actual, expected: boxes (K, 4), scores (K,) and labels (K,).
        size: of the longer edge of the image, in pixels.

    Returns:
        The largest difference of scores, or of coordinates in ``size``, between each expected detection and the nearest
        actual one of the same class; infinite if the numbers of detections differ.
    """
    (boxes, scores, labels), (true_boxes, true_scores, true_labels) = actual, expected
    if len(scores) != len(true_scores):
        return np.inf
    if not len(scores):
        return 0.0
    shifts = np.abs(boxes[:, None] - true_boxes).max(2) / size
    shifts = np.maximum(shifts, np.abs(scores[:, None] - true_scores))
    shifts[labels[:, None] != true_labels] = np.inf
    return float(max(shifts.min(0).max(), shifts.min(1).max()))

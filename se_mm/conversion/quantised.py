"""Exported networks in int8, with the gates of SE in float."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

GATES = 'se_layer'


def quantised(content: bytes, images: Iterable[np.ndarray], *, gates: bool = False) -> bytes:
    """The content of an ONNX file with int8 convolutions and matrix products, by onnxruntime's quantiser.

    Means over H and W stay in float. The operators of a detector that stand in no module, such as the selection of
    boxes, stay in float, too.

    Args:
        content: of :func:`export_onnx`.
        images: what the network is calibrated with, each (N, C, H, W).
        gates: whether the gates of SE become int8 too.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else dict(images=batch)

    model = onnx.load_model_from_string(content)
    kept = [
        node.name
        for node in model.graph.node
        if '/' not in node.name or (GATES in node.name and not gates) or node.op_type == 'GlobalAveragePool'
    ]
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime's quantiser warns of what export_onnx has done
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'int8.onnx')
        quantize_static(
            model, path, Images(), per_channel=True, activation_type=QuantType.QUInt8, nodes_to_exclude=kept
        )
        return path.read_bytes()


def in_int8(content: bytes) -> dict[str, tuple[int, int]]:
    """How many convolutions and matrix products of an ONNX file are in int8, of how many; in the gates and elsewhere.

    Returns:
        with the keys 'gates' and 'others'.
    """
    import onnx

    graph = onnx.load_model_from_string(content).graph
    dequantised = {name for node in graph.node if node.op_type == 'DequantizeLinear' for name in node.output}
    counts = dict(gates=[0, 0], others=[0, 0])
    for node in graph.node:
        if node.op_type in ('Conv', 'Gemm', 'MatMul'):
            count = counts['gates' if GATES in node.name else 'others']
            count[0] += all(name in dequantised for name in node.input[:2])
            count[1] += 1
    return {kind: (number, whole) for kind, (number, whole) in counts.items()}

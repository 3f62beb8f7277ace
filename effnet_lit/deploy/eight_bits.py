"""Weights of an ONNX file in 8 bits: a quarter of the size, the same speed.

Only weights are rounded. Activations stay as they are: rounding those too is not tried here.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

LEAST = 2048  # numbers; smaller weights weigh nothing
LAYERS = ("Conv", "Gemm", "MatMul")
STEPS = 127  # on either side of 0


def in_eight_bits(model: onnx.ModelProto, untouched: np.ndarray | None) -> onnx.ModelProto:
    """The same graph, with the weights of its layers as int8 times one float32 for each row (output channel of a
    convolution). ONNX Runtime multiplies once, when it loads the file.

    Args:
        untouched: a matrix that stays in float32.
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    graph = small.graph
    weights = {name for node in graph.node if node.op_type in LAYERS for name in node.input[1:2]}
    nodes: list[onnx.NodeProto] = []
    met = untouched is None
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.name not in weights or values.size < LEAST:
            continue
        if untouched is not None and np.array_equal(values, untouched):
            met = True
            continue
        integers, scale = rounded(values)
        whole, factor, product = (f"{tensor.name}_{part}" for part in ("int8", "scale", "float"))
        graph.initializer.remove(tensor)
        graph.initializer.extend([numpy_helper.from_array(integers, whole), numpy_helper.from_array(scale, factor)])
        nodes.append(helper.make_node("Cast", [whole], [product], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [product, factor], [tensor.name]))
    assert met, "the matrix that stays in float32 is not in the graph"
    for node in reversed(nodes):
        graph.node.insert(0, node)
    return small


def rounded(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E, ...) float32 -> int8 (E, ...) and float32 (E, 1 ...), whose product differs by half a step at most."""
    rows = tuple(range(1, weights.ndim))
    scale = (np.abs(weights).max(axis=rows, keepdims=True) / STEPS).astype(np.float32)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    return np.round(weights / scale).astype(np.int8), scale

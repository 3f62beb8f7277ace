"""Weights of an ONNX file in 8 bits: less than a third of the size, the same speed.

Only weights are rounded. Activations stay as they are: rounding those too is not tried here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from effnet_lit.deploy.onnx_file import session_of

LEAST = 16_384  # numbers; smaller weights, 0.7 MB of a B0, would be nearly half of the error
LAYERS = ("Conv", "Gemm", "MatMul")
STEPS = 127  # on either side of 0


def in_eight_bits(
    model: onnx.ModelProto, images: Iterable[np.ndarray], untouched: np.ndarray | None
) -> onnx.ModelProto:
    """The same graph, with the weights of its layers as int8 times one float32 for each row (output channel of a
    convolution). ONNX Runtime multiplies once, when it loads the file.

    What rounding adds to the mean of a layer's output is taken from its bias (arXiv 1906.04721, 4.2), but for MatMul,
    which has none, and for the borders of images.

    Args:
        images: uint8 (H, W, 3), typical ones, at least one; means are theirs.
        untouched: a matrix that stays in float32.
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    graph = small.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    if untouched is not None:
        kept = [name for name, values in tensors.items() if np.array_equal(values, untouched)]
        assert kept, "the matrix that stays in float32 is not in the graph"
        tensors = {name: values for name, values in tensors.items() if name not in kept}
    layers = [node for node in graph.node if is_large(node, tensors)]
    products: list[onnx.NodeProto] = []
    errors: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(node.input[1] for node in layers):
        integers, scale = rounded(tensors[name])
        errors[name] = tensors[name] - integers * scale
        whole, factor, product = (f"{name}_{part}" for part in ("int8", "scale", "float"))
        products.append(helper.make_node("Cast", [whole], [product], to=onnx.TensorProto.FLOAT))
        products.append(helper.make_node("Mul", [product, factor], [name]))
        graph.initializer.extend([numpy_helper.from_array(integers, whole), numpy_helper.from_array(scale, factor)])
    with_bias = [node for node in layers if node.op_type != "MatMul"]
    means = mean_inputs(model, sorted({node.input[0] for node in with_bias}), images)
    for node in with_bias:
        bias = mean_output(errors[node.input[1]], means[node.input[0]])
        if len(node.input) == 3:
            bias += tensors[node.input.pop()]
        node.input.append(f"{node.output[0]}_bias")
        graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), node.input[2]))
    for product in reversed(products):
        graph.node.insert(0, product)
    used = {name for node in graph.node for name in node.input} - {name for node in products for name in node.output}
    needed = [tensor for tensor in graph.initializer if tensor.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(needed)
    return small


def is_large(node: onnx.NodeProto, tensors: dict[str, np.ndarray]) -> bool:
    """Whether this is a layer whose weights are worth storing in 8 bits: many, and each output's in a row."""
    if node.op_type not in LAYERS or any(name not in tensors for name in node.input[1:]):
        return False
    rows = node.op_type != "Gemm" or any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return rows and tensors[node.input[1]].size >= LEAST


def rounded(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E, ...) float32 -> int8 (E, ...) and float32 (E, 1 ...), whose product differs by half a step at most."""
    rows = tuple(range(1, weights.ndim))
    scale = (np.abs(weights).max(axis=rows, keepdims=True) / STEPS).astype(np.float32)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    return np.round(weights / scale).astype(np.int8), scale


def mean_inputs(model: onnx.ModelProto, names: list[str], images: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """The mean (C,) over images and pixels of the activations (N, C, ...) that bear these names."""
    if not names:  # ONNX Runtime would give all outputs
        return {}
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    seen.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = session_of(seen.SerializeToString())
    means: list[list[np.ndarray]] = []
    for image in images:
        found = (np.asarray(activations) for activations in session.run(names, {"image": image[None]}))
        means.append([activations.mean(axis=(0, *range(2, activations.ndim))) for activations in found])
    return {name: np.mean(each, axis=0) for name, each in zip(names, zip(*means, strict=True), strict=True)}


def mean_output(weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(E, C / groups, ...) applied to an image that is ``mean`` (C,) everywhere -> (E,)."""
    whole = weights.reshape(*weights.shape[:2], -1).sum(2)
    groups = len(mean) // whole.shape[1]
    return (whole * mean.reshape(groups, -1).repeat(len(whole) // groups, axis=0)).sum(1)

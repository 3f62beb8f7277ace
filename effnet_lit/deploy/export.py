"""A model file as ONNX that takes photographs of any size, so that nothing before the network can be done otherwise.

Resizing stands in the graph. On bytes ONNX Runtime resizes as Pillow does, but for 1, seldom 2, of 255 in about a
thousandth of the values; in floating point it does not, because Pillow rounds between its two passes.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.compose import merge_models
from onnx.parser import parse_model
from torch import Tensor, nn

from effnet_lit.config import UserError
from effnet_lit.data.decode import PAD_COLOUR
from effnet_lit.deploy.eight_bits import in_eight_bits
from effnet_lit.deploy.onnx_file import CLASSES, HEADER
from effnet_lit.model.modelfile import ImageClassifier, write_whole

OPSET = 18  # the first whose Resize can be antialiased
BICUBIC = 'mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1, axes = [1, 2]'  # as Pillow does
GRAPH = """<ir_version: 10, opset_import: ["": {opset}]>
    fit (uint8[n, h, w, 3] image) => (uint8[n, s, s, 3] square) {{ {body} }}"""
SQUARES = {  # how an image of any shape becomes a square, as ``fit_square`` in data/decode.py
    "squish": """
        size = Constant <value_ints = [{size}, {size}]> ()
        square = Resize <{bicubic}> (image, , , size)
    """,
    "crop": """
        size = Constant <value_ints = [{size}, {size}]> ()
        two = Constant <value_int = 2> ()
        axes = Constant <value_ints = [1, 2]> ()
        shape = Shape <start = 1, end = 3> (image)
        side = ReduceMin (shape)
        left_over = Sub (shape, side)
        start = Div (left_over, two)
        end = Add (start, side)
        middle = Slice (image, start, end, axes)
        square = Resize <{bicubic}> (middle, , , size)
    """,
    "pad": """
        size = Constant <value_int = {size}> ()
        one = Constant <value_int = 1> ()
        two = Constant <value_int = 2> ()
        axes = Constant <value_ints = [1, 2]> ()
        grey = Constant <value = uint8 {{{grey}}}> ()
        shape = Shape <start = 1, end = 3> (image)
        longest = ReduceMax (shape)
        exact_shape = Cast <to = {double}> (shape)
        exact_longest = Cast <to = {double}> (longest)
        exact_size = Cast <to = {double}> (size)
        scale = Div (exact_size, exact_longest)
        scaled = Mul (exact_shape, scale)
        rounded = Round (scaled)
        whole = Cast <to = {int64}> (rounded)
        inner = Max (whole, one)
        small = Resize <{bicubic}> (image, , , inner)
        left_over = Sub (size, inner)
        before = Div (left_over, two)
        after = Sub (left_over, before)
        margins = Concat <axis = 0> (before, after)
        square = Pad (small, margins, grey, axes)
    """,
}


class Answers(nn.Module):
    """What the file answers: probabilities (N, classes), sure (N,) and unlike the training images (N,)."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        calibration = classifier.header.calibration
        self.sure_from = calibration.get("abstain_below", 0.0)
        self.unlike_above = calibration.get("unlike_above", math.inf)

    def forward(self, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 (N, S, S, 3)."""
        probabilities, unlike = self.classifier.with_familiarity(square)
        return probabilities, probabilities.amax(1) >= self.sure_from, unlike > self.unlike_above


def to_onnx(classifier: ImageClassifier, typical: Iterable[np.ndarray] | None = None) -> onnx.ModelProto:
    """uint8 ``image`` (N, H, W, 3), upright RGB of any height and width -> ``probabilities``, ``sure`` and ``unlike``.

    The model file's header and the names of its classes lie in it as metadata.

    Args:
        typical: images, uint8 (H, W, 3); with them weights are stored in 8 bits.
    """
    header = classifier.header
    example = torch.zeros(2, header.eval_size, header.eval_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        exported = torch.onnx.export(
            Answers(classifier).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["square"],
            output_names=["probabilities", "sure", "unlike"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),  # an error where N cannot be any number
        )
    assert exported is not None
    network = exported.model_proto
    fit = square_of(header.resize, header.eval_size)
    fit.ir_version = network.ir_version
    whole = merge_models(fit, network, [("square", "square")])
    del whole.opset_import[1:]  # the same one twice
    whole.graph.ClearField("value_info")
    for output in whole.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "n"
    for item in (*whole.graph.node, *whole.graph.output):
        item.ClearField("metadata_props")  # where on this machine the code lies that made them
    if typical is not None:
        known = classifier.familiarity  # a thousandth of it tells familiar from unlike
        whole = in_eight_bits(whole, typical, None if known is None else known.directions.T.numpy())
    onnx.checker.check_model(whole, full_check=True)
    texts = {HEADER: json.dumps(asdict(header), ensure_ascii=False), CLASSES: json.dumps(header.class_names)}
    onnx.helper.set_model_props(whole, texts)
    return whole


def square_of(resize: str, size: int) -> onnx.ModelProto:
    """uint8 ``image`` (N, H, W, 3) -> ``square`` (N, size, size, 3); ``resize`` is one of RESIZE_RULES."""
    kinds = onnx.TensorProto
    body = SQUARES[resize].format(
        size=size, bicubic=BICUBIC, grey=PAD_COLOUR[0], double=kinds.DOUBLE, int64=kinds.INT64
    )
    return parse_model(GRAPH.format(opset=OPSET, body=body))


def must_be_free(path: Path) -> None:
    """Nothing but an earlier export may be written over.

    Raises:
        UserError: ``path`` holds something else, or its folder is not there.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; make it, or give another path with --out.")
    if path.suffix != ".onnx":
        raise UserError(f"{path} is neither a folder nor the name of an .onnx file; give one of them with --out.")
    if path.exists() and not is_export(path):
        raise UserError(f"{path} is no earlier export of effnet_lit and is left alone; give another path with --out.")


def write_onnx(path: Path, model: onnx.ModelProto) -> None:
    """Write the file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_whole(path, model.SerializeToString())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give another path with --out.") from error


def is_export(path: Path) -> bool:
    """Whether ``to_onnx`` made this file."""
    try:
        return any(item.key == HEADER for item in onnx.load(path, load_external_data=False).metadata_props)
    except Exception:  # whatever else lies there
        return False

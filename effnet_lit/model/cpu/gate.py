"""The gate of squeeze-and-excitation, of one piece of a batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from effnet_lit.model.cpu.pieces import rows
from effnet_lit.model.cpu.pointwise import pointwise, pointwise_backward

aten = torch.ops.aten


class GateWeights(NamedTuple):
    """Parameters of its two 1x1 convolutions."""

    reduce: Tensor  # (S, E, 1, 1)
    reduce_bias: Tensor
    excite: Tensor  # (E, S, 1, 1)
    excite_bias: Tensor


class Gate(NamedTuple):
    """Means over space (N, E), what they are reduced to (N, S), and the gate (N, E)."""

    pooled: Tensor
    reduced: Tensor
    gate: Tensor


def gate_of(y: Tensor, w: GateWeights) -> Gate:
    """(N, E, H, W) -> its gate."""
    pooled = y.mean((2, 3))
    reduced = functional.linear(pooled, w.reduce.flatten(1), w.reduce_bias)
    gate = functional.linear(functional.silu(reduced), w.excite.flatten(1), w.excite_bias).sigmoid_()
    return Gate(pooled, reduced, gate)


def gate_backward(by_gate: Tensor, gate: Gate, w: GateWeights) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the means (N, E) and of the four parameters."""
    by_excited = by_gate * gate.gate * (1 - gate.gate)
    by_reduced = aten.silu_backward(by_excited @ w.excite.flatten(1), gate.reduced)
    by_reduce, by_excite = by_reduced.t() @ gate.pooled, by_excited.t() @ functional.silu(gate.reduced)
    return by_reduced @ w.reduce.flatten(1), [
        by_reduce.view_as(w.reduce),
        by_reduced.sum(0),
        by_excite.view_as(w.excite),
        by_excited.sum(0),
    ]


def gated_projection_backward(
    gradient: Tensor, y: Tensor, gate: Gate, w: GateWeights, project: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """From the projection (C', E, 1, 1) of ``y`` times its gate to ``y``: gradients of ``y``, of the projection and of
    the gate's four parameters."""
    n, c, *size = gradient.shape
    pixels = math.prod(size)
    if pixels < 4 * c:  # products of so few pixels are larger than what they spare
        gated = y * gate.gate[:, :, None, None]
        by_gated, by_project = pointwise_backward(gradient, gated, project)
        by_pooled, by_gate = gate_backward(torch.mul(by_gated, y, out=gated).sum((2, 3)), gate, w)
        return through_gate(by_gated, by_pooled, gate), by_project, by_gate
    # One product an image holds the projection's gradient and the gate's; neither needs all pixels again.
    products = torch.bmm(rows(gradient).view(n, pixels, c).transpose(1, 2), rows(y).view(n, pixels, -1))  # (N, C', E)
    by_project = torch.einsum("nce,ne->ce", products, gate.gate).view_as(project)
    by_pooled, by_gate = gate_backward(products.mul_(project.flatten(1)).sum(1), gate, w)
    return through_gate(pointwise(gradient, project.transpose(0, 1)), by_pooled, gate), by_project, by_gate


def through_gate(by_gated: Tensor, by_pooled: Tensor, gate: Gate) -> Tensor:
    """Gradient of what is gated and pooled, in the place of that of the gated."""
    by_mean = by_pooled[:, :, None, None] / by_gated[0, 0].numel()
    return torch.addcmul(by_mean, by_gated, gate.gate[:, :, None, None], out=by_gated)

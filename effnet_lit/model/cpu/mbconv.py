"""MBConv as one function, worked off in pieces; its values and gradients are those of the modules, up to rounding.

Each piece goes through all layers up to the next BatchNorm, which needs the whole batch, and backward computes again
what is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from effnet_lit.model.cpu.batchnorm import (
    Folded,
    Moments,
    Statistics,
    fold,
    moments_of,
    norm_gradients,
    normalise,
    statistics_of,
    through_norm,
    unfold,
)
from effnet_lit.model.cpu.depthwise import depthwise, depthwise_backward
from effnet_lit.model.cpu.pieces import as_images, new_images, parts, rows, split, total, totals
from effnet_lit.model.cpu.pointwise import pointwise, pointwise_backward, weight_and_bias_gradients
from effnet_lit.model.cpu.threads import each, undivided

if TYPE_CHECKING:
    from effnet_lit.model.efficientnet import MBConv

aten = torch.ops.aten

CHEAP_CHANNELS = 16  # expanding so few is cheap: of EfficientNet-B0 a ninth of the arithmetic, a third of the memory


class Weights(NamedTuple):
    """Parameters of an MBConv, less those of the expansion."""

    kernel: Tensor  # (E, 1, k, k)
    scale: Tensor
    shift: Tensor
    reduce: Tensor  # (S, E, 1, 1)
    reduce_bias: Tensor
    excite: Tensor  # (E, S, 1, 1)
    excite_bias: Tensor
    project: Tensor  # (C', E, 1, 1)
    out_scale: Tensor
    out_shift: Tensor


def fused_mbconv(block: MBConv, x: Tensor) -> Tensor:
    """``block(x)``, (N, C, H, W) -> (N, C', H', W')."""
    x = x.contiguous(memory_format=torch.channels_last)  # pixels as rows must be views
    drop = block.drop_path(x.new_ones(len(x), 1, 1, 1)) if block.has_skip and block.drop_path.p > 0 else None
    expand = block.expand.tensors() if isinstance(block.expand, nn.Sequential) else (None, None, None)
    gate = block.squeeze_excite
    gate_weights = gate.reduce.weight, gate.reduce.bias, gate.expand.weight, gate.expand.bias
    return FusedMBConv.apply(  # type: ignore[return-value]
        block, x, drop, *expand, *block.depthwise.tensors(), *gate_weights, *block.project.tensors()
    )


class Gate(NamedTuple):
    """Of squeeze-and-excitation: means over space (N, E), what they are reduced to (N, S), and the gate (N, E)."""

    pooled: Tensor
    reduced: Tensor
    gate: Tensor


def gate_of(y: Tensor, w: Weights) -> Gate:
    """(N, E, H, W) -> its gate."""
    pooled = y.mean((2, 3))
    reduced = functional.linear(pooled, w.reduce.flatten(1), w.reduce_bias)
    gate = functional.linear(functional.silu(reduced), w.excite.flatten(1), w.excite_bias).sigmoid_()
    return Gate(pooled, reduced, gate)


def gate_backward(by_gate: Tensor, gate: Gate, w: Weights) -> tuple[Tensor, list[Tensor]]:
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


def keeps_expanded(gradient_checkpointing: str, channels: int) -> bool:
    """Whether expanded activations are kept for backward, or computed again from so many channels."""
    return gradient_checkpointing == "off" or (gradient_checkpointing == "activations" and channels > CHEAP_CHANNELS)


class FusedMBConv(torch.autograd.Function):
    """MBConv. Kept for backward: the input, the raw outputs of the depthwise and the projecting convolution, and what
    ``keeps_expanded`` says."""

    @staticmethod
    @undivided
    def forward(ctx: Any, block: MBConv, x: Tensor, drop: Tensor | None, *tensors: Any) -> Tensor:
        expand, w = tensors[:3], Weights(*tensors[3:])
        pieces = split(x, len(w.kernel))
        keeps = keeps_expanded(block.gradient_checkpointing, x.shape[1])
        folded = (
            fold(pieces, expand[0], expand[1], expand[2], block.expand.norm)
            if isinstance(block.expand, nn.Sequential)
            else None
        )

        def to_raw(piece: Tensor) -> tuple[Tensor, Moments | None, Tensor | None]:
            z = None if folded is None else pointwise(piece, folded.weight, folded.bias)
            result = depthwise(piece if z is None else functional.silu(z), w.kernel, block.depthwise.conv)
            return result, moments_of(result, block.depthwise.norm), z if keeps else None

        def to_projected(piece: Tensor) -> tuple[Tensor, Moments | None, Gate]:
            y = aten.silu_(normalise(piece, hidden, w.scale, w.shift))
            gate = gate_of(y, w)
            y *= gate.gate[:, :, None, None]
            result = pointwise(y, w.project)
            return result, moments_of(result, block.project.norm), gate

        def to_result(part: slice, piece: Tensor) -> None:
            out = normalise(piece, final, w.out_scale, w.out_shift, out=result[part])
            if drop is not None:
                out *= drop[part]
            if block.has_skip:
                out += x[part]

        raw, moments, expanded = zip(*each(to_raw, pieces), strict=True)
        hidden = statistics_of(moments, block.depthwise.norm)
        projected, moments, gates = zip(*each(to_projected, raw), strict=True)
        final = statistics_of(moments, block.project.norm)
        result = new_images(len(x), projected[0])
        each(to_result, parts(projected), projected)
        ctx.block, ctx.pieces, ctx.pixels = block, len(pieces), (hidden.pixels, final.pixels, folded and folded.pixels)
        gate = [torch.cat(tensors) for tensors in zip(*gates, strict=True)]
        kept = *hidden[:2], *final[:2], *gate, *(folded or [None] * len(Folded._fields))[:-1]
        ctx.save_for_backward(x, drop, *tensors, *kept, *raw, *projected, *expanded)
        return result

    @staticmethod
    @once_differentiable
    @undivided
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, drop, *tensors = ctx.saved_tensors
        expand, w, tensors = tensors[:3], Weights(*tensors[3:13]), tensors[13:]
        hidden = Statistics(tensors[0], tensors[1], ctx.pixels[0])
        final = Statistics(tensors[2], tensors[3], ctx.pixels[1])
        gate = Gate(*tensors[4:7])
        folded = Folded._make([*tensors[7:13], ctx.pixels[2]]) if tensors[7] is not None else None
        raw, projected, expanded = (tensors[13 + i * ctx.pieces :][: ctx.pieces] for i in range(3))
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_hidden, by_norm, by_project, by_gate, by_final = project_backward(
            gradient, drop, raw, projected, hidden, gate, final, w
        )
        to_raw = through_norm(hidden, w.scale, by_norm)
        by_x, by_expand, by_kernel = depthwise_and_expand_backward(
            x,
            by_hidden,
            raw,
            expanded,
            to_raw,
            folded,
            expand,
            w,
            ctx.block.depthwise.conv,
            gradient if ctx.block.has_skip else None,
        )
        return None, by_x, None, *by_expand, by_kernel, *by_norm, *by_gate, by_project, *by_final


def project_backward(
    gradient: Tensor,
    drop: Tensor | None,
    raw: Sequence[Tensor],
    projected: Sequence[Tensor],
    hidden: Statistics,
    gate: Gate,
    final: Statistics,
    w: Weights,
) -> tuple[list[Tensor], Tensor, Tensor, Sequence[Tensor], Tensor]:
    """From the block's end to the BatchNorm behind the depthwise convolution: dz of each piece there, then gradients of
    that layer's scale and shift (2, E), of the projection, of the gate's four parameters, and of the last scale and
    shift (2, C')."""

    def through_drop(part: slice, end: Tensor) -> tuple[Tensor, Tensor]:
        dy = gradient[part] if drop is None else gradient[part] * drop[part]
        return dy, norm_gradients(dy, end, final, w.out_scale)

    incoming, by_ends = zip(*each(through_drop, parts(projected), projected), strict=True)
    by_final = total(by_ends)
    to_projected = through_norm(final, w.out_scale, by_final)

    def backward(part: slice, dy: Tensor, piece: Tensor, end: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = normalise(piece, hidden, w.scale, w.shift)
        by_y, by_project, by_gate = gated_projection_backward(
            to_projected(dy, end), functional.silu(z), Gate(*(tensor[part] for tensor in gate)), w
        )
        dz = aten.silu_backward(by_y, z, grad_input=by_y)
        return dz, [norm_gradients(dz, piece, hidden, w.scale), by_project, *by_gate]

    outgoing, gradients = zip(*each(backward, parts(raw), incoming, raw, projected), strict=True)
    by_norm, by_project, *by_gate = totals(gradients)
    return list(outgoing), by_norm, by_project, by_gate, by_final


def gated_projection_backward(
    gradient: Tensor, y: Tensor, gate: Gate, w: Weights
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """From the projection of ``y`` times its gate to ``y`` by one piece: gradients of ``y``, of the projection and of
    the gate's four parameters."""
    n, c, *size = gradient.shape
    pixels = math.prod(size)
    if pixels < 2 * c:  # products of so few pixels are larger than what they spare
        opened = gate.gate[:, :, None, None]
        gated = y * opened
        by_gated, by_project = pointwise_backward(gradient, gated, w.project)
        by_pooled, by_gate = gate_backward(torch.mul(by_gated, y, out=gated).sum((2, 3)), gate, w)
        by_y = torch.addcmul(by_pooled[:, :, None, None] / pixels, by_gated, opened, out=by_gated)
        return by_y, by_project, by_gate
    # One product an image holds the projection's gradient and the gate's; neither needs all pixels again.
    project, lines = w.project.flatten(1), rows(gradient).view(n, pixels, c)
    products = torch.bmm(lines.transpose(1, 2), rows(y).view(n, pixels, -1))  # (N, C', E)
    by_project = torch.einsum("nce,ne->ce", products, gate.gate).view_as(w.project)
    by_pooled, by_gate = gate_backward(products.mul_(project).sum(1), gate, w)
    by_lines = torch.baddbmm(by_pooled[:, None] / pixels, lines, project * gate.gate[:, None])
    return as_images(by_lines.view(n * pixels, -1), y), by_project, by_gate


def depthwise_and_expand_backward(
    x: Tensor,
    by_hidden: list[Tensor],
    raw: Sequence[Tensor],
    expanded: Sequence[Tensor | None],
    to_raw: Callable[[Tensor, Tensor], Tensor],
    folded: Folded | None,
    expand: Sequence[Tensor],
    w: Weights,
    conv: nn.Conv2d,
    skipped: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor | None], Tensor]:
    """From there to the input: gradients of ``x``, with ``skipped`` where the block adds its input, of the expansion's
    weight, scale and shift, and of the kernel. Lets go of ``by_hidden`` piece by piece."""
    by_x = torch.empty_like(x)

    def backward(i: int, part: slice, piece: Tensor, z: Tensor | None) -> list[Tensor]:
        by_raw = to_raw(by_hidden[i], piece)
        by_hidden[i] = piece  # lets go of it
        if folded is None:
            by_x[part], by_kernel = depthwise_backward(by_raw, x[part], w.kernel, conv)
            gradients = [by_kernel]
        else:
            if z is None:
                z = pointwise(x[part], folded.weight, folded.bias)
            by_y, by_kernel = depthwise_backward(by_raw, functional.silu(z), w.kernel, conv)
            dz = aten.silu_backward(by_y, z)
            by_x[part] = pointwise(dz, folded.weight.transpose(0, 1))
            gradients = [by_kernel, weight_and_bias_gradients(dz, x[part])]
        if skipped is not None:
            by_x[part] += skipped[part]
        return gradients

    by_kernel, *by_folded = totals(each(backward, range(len(raw)), parts(raw), raw, expanded))
    by_expand: Sequence[Tensor | None] = (None, None, None)
    if folded is not None:
        *by_expand, weight, bias = unfold(folded, expand[0], expand[1], *by_folded)
        if math.isfinite(folded.pixels):
            each(lambda part: by_x[part].add_(pointwise(x[part], weight, bias)), parts(raw))
    return by_x, by_expand, by_kernel

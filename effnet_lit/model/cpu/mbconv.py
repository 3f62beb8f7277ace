"""MBConv as one function, worked off in pieces; its values and gradients are those of the modules, up to rounding.

Each piece goes through all layers up to the next BatchNorm, which needs the whole batch, and backward computes again
what is cheap.
"""

from __future__ import annotations

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
from effnet_lit.model.cpu.gate import Gate, GateWeights, gate_of, gated_projection_backward
from effnet_lit.model.cpu.pieces import new_images, parts, split, total, totals
from effnet_lit.model.cpu.pointwise import pointwise, weight_gradient
from effnet_lit.model.cpu.threads import each, undivided

if TYPE_CHECKING:
    from effnet_lit.model.efficientnet import MBConv

aten = torch.ops.aten

CHEAP_CHANNELS = 16  # expanding so few is cheap: of EfficientNet-B0 a ninth of the arithmetic, a third of the memory


class Weights(NamedTuple):
    """Parameters of an MBConv, less those of the expansion and the gate."""

    kernel: Tensor  # (E, 1, k, k)
    scale: Tensor
    shift: Tensor
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
        block, x, drop, *expand, *block.depthwise.tensors(), *block.project.tensors(), *gate_weights
    )


def keeps_expanded(gradient_checkpointing: str, channels: int) -> bool:
    """Whether expanded activations are kept for backward, or computed again from so many channels."""
    return gradient_checkpointing == "off" or (gradient_checkpointing == "activations" and channels > CHEAP_CHANNELS)


class FusedMBConv(torch.autograd.Function):
    """MBConv. Kept for backward: the input, the raw outputs of the depthwise and the projecting convolution, and what
    ``keeps_expanded`` says."""

    @staticmethod
    @undivided
    def forward(ctx: Any, block: MBConv, x: Tensor, drop: Tensor | None, *tensors: Any) -> Tensor:
        expand, w, gate_weights = tensors[:3], Weights(*tensors[3:9]), GateWeights(*tensors[9:])
        pieces = split(x, len(w.kernel))
        keeps = keeps_expanded(block.gradient_checkpointing, x.shape[1])
        folded = (
            fold(pieces, expand[0], expand[1], expand[2], block.expand.norm)
            if isinstance(block.expand, nn.Sequential)
            else None
        )

        def to_raw(piece: Tensor) -> tuple[Tensor, Moments, Tensor | None]:
            z = None if folded is None else pointwise(piece, folded.weight, folded.bias)
            result = depthwise(piece if z is None else functional.silu(z), w.kernel, block.depthwise.conv)
            return result, moments_of(result), z if keeps else None

        def to_projected(piece: Tensor) -> tuple[Tensor, Moments, Gate]:
            y = aten.silu_(normalise(piece, hidden, w.scale, w.shift))
            gate = gate_of(y, gate_weights)
            y *= gate.gate[:, :, None, None]
            result = pointwise(y, w.project)
            return result, moments_of(result), gate

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
        expand, w, gate_weights = tensors[:3], Weights(*tensors[3:9]), GateWeights(*tensors[9:13])
        tensors = tensors[13:]
        hidden = Statistics(tensors[0], tensors[1], ctx.pixels[0])
        final = Statistics(tensors[2], tensors[3], ctx.pixels[1])
        gate = Gate(*tensors[4:7])
        folded = Folded._make([*tensors[7:12], ctx.pixels[2]]) if tensors[7] is not None else None
        raw, projected, expanded = (tensors[12 + i * ctx.pieces :][: ctx.pieces] for i in range(3))
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_hidden, by_norm, by_project, by_gate, by_final = project_backward(
            gradient, drop, raw, projected, hidden, gate, gate_weights, final, w
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
        return None, by_x, None, *by_expand, by_kernel, *by_norm, by_project, *by_final, *by_gate


def project_backward(
    gradient: Tensor,
    drop: Tensor | None,
    raw: Sequence[Tensor],
    projected: Sequence[Tensor],
    hidden: Statistics,
    gate: Gate,
    gate_weights: GateWeights,
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
            to_projected(dy, end), functional.silu(z), Gate(*(tensor[part] for tensor in gate)), gate_weights, w.project
        )
        dz = aten.silu_backward(by_y, z, grad_input=by_y)
        return dz, [norm_gradients(dz, piece, hidden, w.scale), by_project, *by_gate]

    outgoing, gradients = zip(*each(backward, parts(raw), incoming, raw, projected), strict=True)
    by_norm, by_project, *by_gate = totals(gradients)
    return list(outgoing), by_norm, by_project, by_gate, by_final


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
            dz = aten.silu_backward(by_y, z, grad_input=by_y)
            by_x[part] = pointwise(dz, folded.weight.transpose(0, 1))
            gradients = [by_kernel, weight_gradient(dz, x[part]), dz.sum((0, 2, 3))]
        if skipped is not None:
            by_x[part] += skipped[part]
        return gradients

    by_kernel, *by_folded = totals(each(backward, range(len(raw)), parts(raw), raw, expanded))
    by_expand: Sequence[Tensor | None] = (None, None, None)
    if folded is not None:
        *by_expand, weight, bias = unfold(folded, expand[0], expand[1], *by_folded)
        each(lambda part: by_x[part].add_(pointwise(x[part], weight, bias)), parts(raw))
    return by_x, by_expand, by_kernel

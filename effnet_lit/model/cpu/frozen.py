"""MBConv whose BatchNorms are frozen, as one function worked off in pieces; with TensorFlow's padding and ReLU6, too.

Each BatchNorm is part of its convolution, so that no layer waits for the whole batch: a piece goes through the block
from end to end, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from effnet_lit.model.cpu.depthwise import depthwise, depthwise_backward
from effnet_lit.model.cpu.gate import Gate, GateWeights, gate_of, gated_projection_backward
from effnet_lit.model.cpu.mbconv import keeps_expanded
from effnet_lit.model.cpu.pieces import parts, split, totals
from effnet_lit.model.cpu.pointwise import pointwise, pointwise_backward, weight_gradient
from effnet_lit.model.cpu.threads import each, undivided
from effnet_lit.model.relu6 import ReLU6

if TYPE_CHECKING:
    from effnet_lit.model.efficientnet import MBConv

aten = torch.ops.aten


class Activation(NamedTuple):
    """What is kept of a convolution's output, the activation of that, and its gradient, in the place of the first
    argument."""

    kept: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


SILU = Activation(
    kept=lambda z: z,
    value=functional.silu,
    gradient=lambda dy, z: aten.silu_backward(dy, z, grad_input=dy),
)
RELU6 = Activation(
    kept=lambda z: functional.relu6(z, inplace=True),
    value=lambda y: y,
    gradient=lambda dy, y: aten.hardtanh_backward(dy, y, 0, 6, grad_input=dy),
)


class FoldedWeights(NamedTuple):
    """Kernels and biases with BatchNorm in them; ``gate`` and ``activation`` as the network has them."""

    expand: Tensor | None  # (E, C, 1, 1)
    expand_bias: Tensor | None
    kernel: Tensor  # (E, 1, k, k)
    bias: Tensor
    project: Tensor  # (C', E, 1, 1)
    project_bias: Tensor
    gate: GateWeights | None
    activation: Activation

    def expanded(self, x: Tensor) -> Tensor | None:
        """What is kept of the expansion, if there is one."""
        return None if self.expand is None else self.activation.kept(pointwise(x, self.expand, self.expand_bias))


def weights_of(block: MBConv, tensors: Sequence[Any]) -> FoldedWeights:
    """Six tensors, and four of the gate where there is one."""
    gate = None if isinstance(block.squeeze_excite, nn.Identity) else GateWeights(*tensors[6:])
    return FoldedWeights._make([*tensors[:6], gate, RELU6 if isinstance(block.depthwise.act, ReLU6) else SILU])


def frozen_mbconv(block: MBConv, x: Tensor) -> Tensor:
    """``block(x)``, (N, C, H, W) -> (N, C', H', W')."""
    x = x.contiguous(memory_format=torch.channels_last)  # pixels as rows must be views
    drops = block.training and block.has_skip and block.drop_path.p > 0
    drop = block.drop_path(x.new_ones(len(x), 1, 1, 1)) if drops else None
    expand = (None, None) if isinstance(block.expand, nn.Identity) else block.expand.folded_tensors()
    tensors = *expand, *block.depthwise.folded_tensors(), *block.project.folded_tensors()
    if not isinstance(gate := block.squeeze_excite, nn.Identity):
        tensors += gate.reduce.weight, gate.reduce.bias, gate.expand.weight, gate.expand.bias
    if not torch.is_grad_enabled():
        return in_pieces(block, x, drop, weights_of(block, tensors), False)[0]
    return FrozenMBConv.apply(block, x, drop, *tensors)  # type: ignore[return-value]


@undivided
def in_pieces(
    block: MBConv, x: Tensor, drop: Tensor | None, w: FoldedWeights, trained: bool
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor | None], Sequence[Tensor]]:
    """The result and, of each piece, what comes from the depthwise and from the expanding convolution, as far as it is
    kept; and the gate of all."""
    keeps = trained and keeps_expanded(block.gradient_checkpointing, x.shape[1])

    def through(part: slice, piece: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Sequence[Tensor]]:
        expanded = w.expanded(piece)
        y = piece if expanded is None else w.activation.value(expanded)
        hidden = w.activation.kept(depthwise(y, w.kernel, block.depthwise.conv, w.bias))
        y, gate = w.activation.value(hidden), ()
        if w.gate is not None:
            gate = gate_of(y, w.gate)
            y *= gate.gate[:, :, None, None]
        result = pointwise(y, w.project, w.project_bias)
        if drop is not None:
            result *= drop[part]
        if block.has_skip:
            result += piece
        return result, hidden if trained else None, expanded if keeps else None, gate

    pieces = split(x, len(w.kernel))
    results, hidden, expanded, gates = zip(*each(through, parts(pieces), pieces), strict=True)
    return torch.cat(results), hidden, expanded, [torch.cat(values) for values in zip(*gates, strict=True)]


class FrozenMBConv(torch.autograd.Function):
    """MBConv. Kept for backward: the input, what comes from the depthwise convolution, and what ``keeps_expanded``
    says; nothing where nothing is trained."""

    @staticmethod
    def forward(ctx: Any, block: MBConv, x: Tensor, drop: Tensor | None, *tensors: Any) -> Tensor:
        trained = any(ctx.needs_input_grad)
        result, hidden, expanded, gate = in_pieces(block, x, drop, weights_of(block, tensors), trained)
        if trained:
            ctx.block, ctx.pieces = block, len(hidden)
            ctx.save_for_backward(x, drop, *hidden, *expanded, *gate, *tensors)
        return result

    @staticmethod
    @once_differentiable
    @undivided
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        block, (x, drop, *others) = ctx.block, ctx.saved_tensors
        hidden, expanded, others = others[: ctx.pieces], others[ctx.pieces : 2 * ctx.pieces], others[2 * ctx.pieces :]
        gates = [] if isinstance(block.squeeze_excite, nn.Identity) else others[:3]
        w = weights_of(block, others[len(gates) :])
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        wanted = ctx.needs_input_grad[1]
        by_x = torch.empty_like(x) if wanted else None

        def back(part: slice, hidden: Tensor, expanded: Tensor | None) -> Sequence[Tensor]:
            dy = gradient[part] if drop is None else gradient[part] * drop[part]
            gate = Gate(*(values[part] for values in gates)) if gates else None
            by_hidden, after = through_projection(dy, hidden, gate, w)
            by_piece, before = through_depthwise(by_hidden, x[part], expanded, w, block.depthwise.conv, wanted)
            if by_x is not None:
                by_x[part] = by_piece
                if block.has_skip:
                    by_x[part] += gradient[part]
            return *before, *after

        by_kernel, by_bias, *found = totals(each(back, parts(hidden), hidden, expanded))
        by_expand: Sequence[Tensor | None] = (None, None)
        if w.expand is not None:
            by_expand, found = found[:2], found[2:]
        return None, by_x, None, *by_expand, by_kernel, by_bias, *found


def through_projection(
    dy: Tensor, hidden: Tensor, gate: Gate | None, w: FoldedWeights
) -> tuple[Tensor, Sequence[Tensor]]:
    """From the end of a piece to the depthwise convolution: gradient of what came from that, then those of the
    projection, of its bias and of the gate's four parameters."""
    y, by_gate = w.activation.value(hidden), []
    if gate is None or w.gate is None:
        by_y, by_project = pointwise_backward(dy, y, w.project)
    else:
        by_y, by_project, by_gate = gated_projection_backward(dy, y, gate, w.gate, w.project)
    return w.activation.gradient(by_y, hidden), (by_project, dy.sum((0, 2, 3)), *by_gate)


def through_depthwise(
    by_hidden: Tensor, x: Tensor, expanded: Tensor | None, w: FoldedWeights, conv: nn.Conv2d, wanted: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """From there to the input: its gradient, where ``wanted``, then those of the kernel, of its bias, and of the
    expansion and its bias."""
    by_bias = by_hidden.sum((0, 2, 3))
    if w.expand is None:
        by_x, by_kernel = depthwise_backward(by_hidden, x, w.kernel, conv)
        return by_x, (by_kernel, by_bias)
    if expanded is None:
        expanded = w.expanded(x)
    assert expanded is not None
    by_y, by_kernel = depthwise_backward(by_hidden, w.activation.value(expanded), w.kernel, conv)
    by_expanded = w.activation.gradient(by_y, expanded)
    by_x = pointwise(by_expanded, w.expand.transpose(0, 1)) if wanted else by_y
    by_expand = weight_gradient(by_expanded, x), by_expanded.sum((0, 2, 3))
    return by_x, (by_kernel, by_bias, *by_expand)

"""Device code of passes that activate what they read, of the kind of ``pointwise_kernels``, for ``pointwise``."""
# Kernels are Triton's language, which a type checker takes for Python
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from effnet_lit.model.kernels.arithmetic import sigmoid, silu_slope
from effnet_lit.model.kernels.pointwise_kernels import LEAST_SPECIAL, block, of_channel, place, store_sum


@triton.jit
def load_activated(x, offset, inside, a, b, ACC: tl.constexpr):
    """silu(x * a + b), [BLOCK_P, BLOCK_C]."""
    z = tl.load(x + offset, mask=inside, other=0.0).to(ACC) * a + b
    return z * sigmoid(z)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def pool_kernel(
    y,
    scale,
    shift,
    sums,
    pixels,
    runs,
    steps,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    program, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    a, b = of_channel(scale, channel, C, ACC), of_channel(shift, channel, C, ACC)
    total = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        total += tl.where(inside, load_activated(y, offset, inside, a, b, ACC), 0.0)
    store_sum(sums, total, program, channel, C)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def gate_kernel(
    y,
    scale,
    shift,
    gate,
    e,
    pixels,
    runs,
    steps,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    _, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    a, b = of_channel(scale, channel, C, ACC), of_channel(shift, channel, C, ACC)
    g = of_channel(gate + image * C, channel, C, ACC)
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        value = load_activated(y, offset, inside, a, b, ACC) * g
        tl.store(e + offset, value.to(e.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def gate_sums_kernel(
    y,
    de,
    scale,
    shift,
    mean,
    sums,
    programs,
    pixels,
    runs,
    steps,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Five sums, in the order of ``gate_sums``."""
    program, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    a, b = of_channel(scale, channel, C, ACC), of_channel(shift, channel, C, ACC)
    centre = of_channel(mean, channel, C, ACC)
    gate = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    outer, inner, outer_centred, inner_centred = gate, gate, gate, gate
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        value = tl.load(y + offset, mask=inside, other=0.0).to(ACC)
        grad = tl.load(de + offset, mask=inside, other=0.0).to(ACC)
        z = value * a + b
        slope = tl.where(inside, silu_slope(z), 0.0)
        gate += grad * z * sigmoid(z)
        outer += grad * slope
        inner += slope
        outer_centred += grad * slope * (value - centre)
        inner_centred += slope * (value - centre)
    step = tl.cast(programs, tl.int64) * C
    store_sum(sums, gate, program, channel, C)
    store_sum(sums + step, outer, program, channel, C)
    store_sum(sums + 2 * step, inner, program, channel, C)
    store_sum(sums + 3 * step, outer_centred, program, channel, C)
    store_sum(sums + 4 * step, inner_centred, program, channel, C)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def gate_gradient_kernel(
    y,
    de,
    scale,
    shift,
    mean,
    gate,
    dpooled,
    correction,
    dy,
    pixels,
    runs,
    steps,
    C,
    GATED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """With GATED from de and gate, too; else from the mean over an image alone."""
    _, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    a, b = of_channel(scale, channel, C, ACC), of_channel(shift, channel, C, ACC)
    centre = of_channel(mean, channel, C, ACC)
    constant, slope = of_channel(correction, channel, C, ACC), of_channel(correction + C, channel, C, ACC)
    pooled = of_channel(dpooled + image * C, channel, C, ACC)
    if GATED:
        g = of_channel(gate + image * C, channel, C, ACC)
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        value = tl.load(y + offset, mask=inside, other=0.0).to(ACC)
        grad = pooled
        if GATED:
            grad += tl.load(de + offset, mask=inside, other=0.0).to(ACC) * g
        dz = grad * silu_slope(value * a + b)
        result = a * dz - constant - slope * (value - centre)
        tl.store(dy + offset, result.to(dy.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def pool_sums_kernel(
    y,
    scale,
    shift,
    mean,
    dpooled,
    sums,
    programs,
    pixels,
    runs,
    steps,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Of dz = dpooled * silu'(z) and of dz * (y - mean)."""
    program, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    a, b = of_channel(scale, channel, C, ACC), of_channel(shift, channel, C, ACC)
    centre, pooled = of_channel(mean, channel, C, ACC), of_channel(dpooled + image * C, channel, C, ACC)
    total = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    centred = total
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        value = tl.load(y + offset, mask=inside, other=0.0).to(ACC)
        dz = tl.where(inside, pooled * silu_slope(value * a + b), 0.0)
        total += dz
        centred += dz * (value - centre)
    store_sum(sums, total, program, channel, C)
    store_sum(sums + tl.cast(programs, tl.int64) * C, centred, program, channel, C)

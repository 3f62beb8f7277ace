"""Device code of the depthwise convolution and its gradients, for ``depthwise``.

A program takes BLOCK_G groups of ROWS rows of the output, for BLOCK_C channels, and walks along them column by column.
The window that the taps see stays in registers and moves along: a step loads one column of it, for the step after.
"""
# Kernels are Triton's language, which a type checker takes for Python
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from effnet_lit.model.kernels.arithmetic import sigmoid
from effnet_lit.model.kernels.depthwise_windows import (
    activate_columns,
    farthest,
    in_precision,
    line,
    load_columns,
    load_taps,
    meets,
    met,
    nearest,
    of_channel,
    place,
    share,
    within,
    without_first,
    zeros,
)
from effnet_lit.model.kernels.moments import store_moments

LEAST_SPECIAL = ["groups", "turns", "programs", "H", "W", "OUT_H", "OUT_W"]  # one compilation for all image sizes


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def forward_kernel(
    x,
    scale,
    shift,
    weight,
    y,
    moments,
    groups,
    turns,
    programs,
    H,
    W,
    OUT_H,
    OUT_W,
    C,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):
    """The window holds activated values; outside the image they are 0, not silu(shift)."""
    LINES: tl.constexpr = (ROWS - 1) * STRIDE + KERNEL
    KEPT: tl.constexpr = KERNEL - STRIDE  # columns that the next output needs, too
    BEFORE: tl.constexpr = KERNEL // 2  # columns of zeros
    program, channel = share(C, BLOCK_C)
    a, b = of_channel(scale, channel, C, WHOLE, ACC), of_channel(shift, channel, C, WHOLE, ACC)
    zero = tl.zeros((BLOCK_G, BLOCK_C), ACC)
    count, pivot, total, square = zero, zero, zero, zero
    taps = load_taps(weight, channel, C, KERNEL, WHOLE, ACC)
    for turn in range(turns):
        image, row = place(program * turns + turn, groups, OUT_H, ROWS, BLOCK_G)
        top = row * STRIDE - BEFORE
        source = line(x, image, top, channel, H, W, C)
        target = line(y, image, row, channel, OUT_H, OUT_W, C)
        count += tl.where(row < 0, 0, tl.minimum(OUT_H - row, ROWS) * OUT_W).to(ACC)[:, None]
        window = zeros(BEFORE * LINES, zero)
        if KEPT > BEFORE:
            early = load_columns(source, top, 0, channel, H, W, C, 0, LINES, KEPT - BEFORE, WHOLE)
            window += activate_columns(early, top, 0, channel, a, b, H, W, C, LINES, KEPT - BEFORE, WHOLE, ACC)
            source += (KEPT - BEFORE) * C
        first = KEPT - BEFORE
        newest = load_columns(source, top, first, channel, H, W, C, 0, LINES, STRIDE, WHOLE)
        for column in range(OUT_W):
            first = column * STRIDE + (KEPT - BEFORE)
            source += STRIDE * C
            following = load_columns(source, top, first + STRIDE, channel, H, W, C, 0, LINES, STRIDE, WHOLE)
            seen = window + activate_columns(newest, top, first, channel, a, b, H, W, C, LINES, STRIDE, WHOLE, ACC)
            for q in tl.static_range(ROWS):
                result = zero
                for k in tl.static_range(KERNEL * KERNEL):
                    result += seen[(k % KERNEL) * LINES + q * STRIDE + k // KERNEL] * taps[k]
                stored = result.to(y.dtype.element_ty)
                inside = within(row + q, column, channel, OUT_H, OUT_W, C, WHOLE)
                tl.store(target + q * OUT_W * C, stored, mask=inside)
                value = stored.to(ACC)
                if q == 0:
                    pivot = tl.where((turn == 0) & (column == 0), value, pivot)
                value = tl.where(inside, value - pivot, 0.0)
                total += value
                square += value * value
            target += C
            window = without_first(seen, STRIDE * LINES, KEPT * LINES)
            newest = following
    store_moments(moments, count, pivot, total, square, program, programs, channel, C)


@triton.jit
def through_taps(
    seen,
    taps,
    slopes,
    activated,
    zero,
    row: tl.constexpr,
    column: tl.constexpr,
    ROWS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """(the gradient of one activated pixel of x, the taps' sums with what it adds), each [BLOCK_G, BLOCK_C]."""
    grad = zero
    updated = ()
    for k in tl.static_range(KERNEL * KERNEL):
        if meets(row % STRIDE, k // KERNEL, KERNEL, STRIDE) and meets(column, k % KERNEL, KERNEL, STRIDE):
            grad += seen[met(row, column, k, ROWS, KERNEL, STRIDE)] * taps[k]
            updated += (slopes[k] + seen[met(row, column, k, ROWS, KERNEL, STRIDE)] * activated,)
        else:
            updated += (slopes[k],)
    return grad, updated


@triton.jit
def store_sums(sums, dweight, total, product, slopes, program, programs, channel, C, KERNEL: tl.constexpr):
    """Into sums [2, programs, C] and dweight [programs, C, KERNEL * KERNEL]."""
    start = tl.cast(program, tl.int64) * C + channel
    tl.store(sums + start, tl.sum(total, 0), mask=channel < C)
    tl.store(sums + tl.cast(programs, tl.int64) * C + start, tl.sum(product, 0), mask=channel < C)
    for k in tl.static_range(KERNEL * KERNEL):
        tl.store(dweight + start * (KERNEL * KERNEL) + k, tl.sum(slopes[k], 0), mask=channel < C)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def backward_kernel(
    x,
    dy,
    scale,
    shift,
    mean,
    weight,
    dz,
    sums,
    dweight,
    groups,
    turns,
    programs,
    H,
    W,
    OUT_H,
    OUT_W,
    C,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Each pixel of the output stands for the STRIDE x STRIDE pixels of x that begin at it."""
    FIRST: tl.constexpr = nearest(KERNEL, STRIDE)
    LAST: tl.constexpr = farthest(KERNEL, STRIDE)
    LINES: tl.constexpr = ROWS + LAST - FIRST
    program, channel = share(C, BLOCK_C)
    a, b = of_channel(scale, channel, C, WHOLE, ACC), of_channel(shift, channel, C, WHOLE, ACC)
    centre = of_channel(mean, channel, C, WHOLE, ACC)
    zero = tl.zeros((BLOCK_G, BLOCK_C), ACC)
    total, product = zero, zero
    taps, slopes = load_taps(weight, channel, C, KERNEL, WHOLE, ACC), zeros(KERNEL * KERNEL, zero)
    for turn in range(turns):
        image, row = place(program * turns + turn, groups, OUT_H, ROWS, BLOCK_G)
        top = row * STRIDE
        upstream = line(dy, image, row, channel, OUT_H, OUT_W, C)
        offset = line(0, image, top, channel, H, W, C)  # of x and of dz
        window = zeros(-FIRST * LINES, zero)
        if LAST > 0:
            early = load_columns(upstream, row, 0, channel, OUT_H, OUT_W, C, FIRST, LINES, LAST, WHOLE)
            window += in_precision(early, LAST * LINES, ACC)
            upstream += LAST * C
        newest = load_columns(upstream, row, LAST, channel, OUT_H, OUT_W, C, FIRST, LINES, 1, WHOLE)
        inputs = load_columns(x + offset, top, 0, channel, H, W, C, 0, ROWS * STRIDE, STRIDE, WHOLE)
        for column in range(OUT_W):
            upstream += C
            following = load_columns(upstream, row, column + 1 + LAST, channel, OUT_H, OUT_W, C, FIRST, LINES, 1, WHOLE)
            source = x + offset + STRIDE * C
            right = (column + 1) * STRIDE
            following_inputs = load_columns(source, top, right, channel, H, W, C, 0, ROWS * STRIDE, STRIDE, WHOLE)
            seen = window + in_precision(newest, LINES, ACC)
            for v in tl.static_range(STRIDE):
                for q in tl.static_range(ROWS * STRIDE):
                    inside = within(top + q, column * STRIDE + v, channel, H, W, C, WHOLE)
                    value = inputs[v * ROWS * STRIDE + q].to(ACC)
                    z = value * a + b
                    s = sigmoid(z)
                    activated = tl.where(inside, z * s, 0.0)
                    grad, slopes = through_taps(seen, taps, slopes, activated, zero, q, v, ROWS, KERNEL, STRIDE)
                    grad = tl.where(inside, grad * s * (1.0 + z * (1.0 - s)), 0.0)
                    tl.store(dz + offset + (q * W + v) * C, grad.to(dz.dtype.element_ty), mask=inside)
                    total += grad
                    product += grad * (value - centre)
            window = without_first(seen, LINES, (LAST - FIRST) * LINES)
            newest, inputs = following, following_inputs
            offset += STRIDE * C
    store_sums(sums, dweight, total, product, slopes, program, programs, channel, C, KERNEL)

"""Device code that ends what other kernels summed for a BatchNorm, for ``norms``."""
# Kernels are Triton's language, which a type checker takes for Python
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from effnet_lit.model.kernels.arithmetic import load_rows


@triton.jit(do_not_specialize=["programs", "size"])
def fold_kernel(
    moments,
    weight,
    bias,
    running_mean,
    running_variance,
    tracked,
    folded,
    programs,
    size,
    C,
    MOMENTUM: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Means are taken from the first program's, which is near them: nothing cancels."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < C
    step = tl.cast(programs, tl.int64) * C
    pivot = tl.load(moments + step + channel, mask=inside, other=0.0).to(ACC)
    weighted = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    squares = weighted
    for first in range(0, programs, BLOCK_P):
        count = load_rows(moments, first, programs, channel, C, BLOCK_P, ACC)
        gap = load_rows(moments + step, first, programs, channel, C, BLOCK_P, ACC) - pivot[None, :]
        weighted += count * gap
        squares += load_rows(moments + 2 * step, first, programs, channel, C, BLOCK_P, ACC) + count * gap * gap
    shifted = tl.sum(weighted, 0) / size
    mean = pivot + shifted
    variance = tl.sum(squares, 0) / size - shifted * shifted
    inverse = 1.0 / tl.sqrt(variance + EPS)
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(ACC) * inverse
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(ACC) - mean * scale
    tl.store(folded + channel, scale, mask=inside)
    tl.store(folded + C + channel, shift, mask=inside)
    tl.store(folded + 2 * C + channel, mean, mask=inside)
    tl.store(folded + 3 * C + channel, inverse, mask=inside)
    move(running_mean, mean, channel, inside, MOMENTUM, ACC)
    move(running_variance, variance * size / (size - 1), channel, inside, MOMENTUM, ACC)
    if tl.program_id(0) == 0:
        tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def move(running, value, channel, inside, MOMENTUM: tl.constexpr, ACC: tl.constexpr):
    """Towards ``value``."""
    old = tl.load(running + channel, mask=inside, other=0.0).to(ACC)
    tl.store(running + channel, (old + MOMENTUM * (value - old)).to(running.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["programs", "size"])
def norm_backward_kernel(
    sums,
    folded,
    dweight,
    dbias,
    correction,
    programs,
    size,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < C
    step = tl.cast(programs, tl.int64) * C
    rows = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    centred_rows = rows
    for first in range(0, programs, BLOCK_P):
        rows += load_rows(sums, first, programs, channel, C, BLOCK_P, ACC)
        centred_rows += load_rows(sums + step, first, programs, channel, C, BLOCK_P, ACC)
    total, centred = tl.sum(rows, 0), tl.sum(centred_rows, 0)
    scale = tl.load(folded + channel, mask=inside, other=0.0).to(ACC)
    inverse = tl.load(folded + 3 * C + channel, mask=inside, other=0.0).to(ACC)
    tl.store(dweight + channel, (centred * inverse).to(dweight.dtype.element_ty), mask=inside)
    tl.store(dbias + channel, total.to(dbias.dtype.element_ty), mask=inside)
    tl.store(correction + channel, scale * total / size, mask=inside)
    slope = scale * inverse * inverse * centred / size
    tl.store(correction + C + channel, slope, mask=inside)

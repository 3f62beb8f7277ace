"""Device code of passes over [N, H, W, C] and of BatchNorms, for ``pointwise``.

A program handles BLOCK_C channels of a run of pixels of one image and writes what it sums to a row of its own.
"""
# Kernels are Triton's language, which a type checker takes for Python
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from effnet_lit.model.kernels.moments import lane_counts, store_moments

LEAST_SPECIAL = ["pixels", "runs", "steps", "programs"]  # one compilation for all image sizes


@triton.jit
def place(runs, steps, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's (number, image, first pixel) and its channels."""
    blocks = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0) // blocks
    channel = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return program, program // runs, program % runs * (steps * BLOCK_P), channel


@triton.jit
def block(image, first, pixels, channel, C, BLOCK_P: tl.constexpr):
    """(offsets, mask) [BLOCK_P, BLOCK_C]; offsets are 64-bit, a batch may pass 2^31 elements."""
    pixel = first + tl.arange(0, BLOCK_P)
    offset = (image.to(tl.int64) * pixels + pixel) * C
    return offset[:, None] + channel[None, :], (pixel < pixels)[:, None] & (channel < C)[None, :]


@triton.jit
def of_channel(vector, channel, C, ACC: tl.constexpr):
    """vector [C] -> [1, BLOCK_C]."""
    return tl.load(vector + channel, mask=channel < C, other=0.0).to(ACC)[None, :]


@triton.jit
def store_sum(out, value, program, channel, C):
    """Into out [programs, C]."""
    tl.store(out + tl.cast(program, tl.int64) * C + channel, tl.sum(value, 0), mask=channel < C)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def moments_kernel(
    x,
    moments,
    programs,
    pixels,
    runs,
    steps,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    program, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    pivot = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    total, square = pivot, pivot
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        value = tl.load(x + offset, mask=inside, other=0.0).to(ACC)
        pivot = tl.where(t == 0, value, pivot)
        value = tl.where(inside, value - pivot, 0.0)
        total += value
        square += value * value
    count = lane_counts(first, pixels, steps, BLOCK_P, BLOCK_C, ACC)
    store_moments(moments, count, pivot, total, square, program, programs, channel, C)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def add_kernel(
    x,
    skip,
    scale,
    shift,
    keep,
    out,
    pixels,
    runs,
    steps,
    C,
    SKIP: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """(x * scale + shift) * keep + skip; ``keep`` is the image's."""
    _, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    a, b = of_channel(scale, channel, C, ACC), of_channel(shift, channel, C, ACC)
    if KEEP:
        kept = tl.load(keep + image).to(ACC)
        a, b = a * kept, b * kept
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        result = tl.load(x + offset, mask=inside, other=0.0).to(ACC) * a + b
        if SKIP:
            result += tl.load(skip + offset, mask=inside, other=0.0).to(ACC)
        tl.store(out + offset, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def norm_sums_kernel(
    x,
    dz,
    mean,
    keep,
    sums,
    programs,
    pixels,
    runs,
    steps,
    C,
    KEEP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Of dz * keep and of dz * keep * (x - mean)."""
    program, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    centre = of_channel(mean, channel, C, ACC)
    total = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    centred = total
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        value = tl.load(x + offset, mask=inside, other=0.0).to(ACC)
        grad = tl.load(dz + offset, mask=inside, other=0.0).to(ACC)
        total += grad
        centred += grad * (value - centre)
    if KEEP:
        kept = tl.load(keep + image).to(ACC)
        total, centred = total * kept, centred * kept
    store_sum(sums, total, program, channel, C)
    store_sum(sums + tl.cast(programs, tl.int64) * C, centred, program, channel, C)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def norm_gradient_kernel(
    x,
    dz,
    scale,
    mean,
    correction,
    keep,
    dx,
    pixels,
    runs,
    steps,
    C,
    KEEP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    _, image, first, channel = place(runs, steps, C, BLOCK_P, BLOCK_C)
    a, centre = of_channel(scale, channel, C, ACC), of_channel(mean, channel, C, ACC)
    constant, slope = of_channel(correction, channel, C, ACC), of_channel(correction + C, channel, C, ACC)
    if KEEP:
        a = a * tl.load(keep + image).to(ACC)
    for t in range(steps):
        offset, inside = block(image, first + t * BLOCK_P, pixels, channel, C, BLOCK_P)
        value = tl.load(x + offset, mask=inside, other=0.0).to(ACC)
        grad = tl.load(dz + offset, mask=inside, other=0.0).to(ACC)
        result = a * grad - constant - slope * (value - centre)
        tl.store(dx + offset, result.to(dx.dtype.element_ty), mask=inside)

"""Device code of the depthwise convolution's gradients, for ``depthwise``.

A program walks through BLOCK_P neighbouring pixels at a time, for BLOCK_C channels. What a tap needs is read anew, from
the cache after the first time: registers, which hold a sum for each tap, are scarcer.
"""
# Kernels are Triton's language, which a type checker takes for Python
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from effnet_lit.model.kernels.moments import sigmoid

LEAST_SPECIAL = ["pixels", "turns", "programs", "H", "W", "OUT_H", "OUT_W"]  # one compilation for all image sizes
OUTSIDE = tl.constexpr(-(2**20))  # a row that no image has


@triton.jit
def share(C, BLOCK_C: tl.constexpr):
    """This program's number and its channels; neighbours share pixels, so that their lines meet in the cache."""
    blocks = tl.cdiv(C, BLOCK_C)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def place(turn, pixels, H, W, BLOCK_P: tl.constexpr):
    """(image, row, column) [BLOCK_P] of the output's pixels, counted through the batch; after the last, OUTSIDE."""
    pixel = turn * BLOCK_P + tl.arange(0, BLOCK_P)
    line = (pixel.to(tl.uint32) // W.to(tl.uint32)).to(tl.int32)  # unsigned division is the cheaper one
    image = (line.to(tl.uint32) // H.to(tl.uint32)).to(tl.int32)
    return image, tl.where(pixel < pixels, line - image * H, OUTSIDE), pixel - line * W


@triton.jit
def address(tensor, image, row, column, channel, H, W, C):
    """[BLOCK_P, BLOCK_C] in tensor [N, H, W, C]; offsets are 64-bit, a batch may pass 2^31 elements."""
    pixel = (image * H + row) * W + column
    return tensor + (pixel.to(tl.int64) * C)[:, None] + channel[None, :]


@triton.jit
def within(row, column, channel, H, W, C, WHOLE: tl.constexpr):
    """[BLOCK_P, 1] or [BLOCK_P, BLOCK_C]: pixels of the image, channels that exist; with WHOLE all do.

    As unsigned numbers, those below 0 are large: one comparison for both ends.
    """
    inside = (row.to(tl.uint32) < H.to(tl.uint32)) & (column.to(tl.uint32) < W.to(tl.uint32))
    return inside[:, None] if WHOLE else inside[:, None] & (channel < C)[None, :]


@triton.jit
def of_channel(vector, channel, C, WHOLE: tl.constexpr, ACC: tl.constexpr):
    """vector [C] -> [1, BLOCK_C]."""
    values = tl.load(vector + channel) if WHOLE else tl.load(vector + channel, mask=channel < C, other=0.0)
    return values.to(ACC)[None, :]


@triton.constexpr_function
def meets(position: int, tap: int, kernel: int, stride: int) -> bool:
    """Whether row (or column) ``position`` of the STRIDE that belong to an output meets any output by ``tap``."""
    return (position + kernel // 2 - tap) % stride == 0


@triton.constexpr_function
def further(position: int, tap: int, kernel: int, stride: int) -> int:
    """How many outputs further."""
    return (position + kernel // 2 - tap) // stride


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
    pixels,
    turns,
    programs,
    H,
    W,
    OUT_H,
    OUT_W,
    C,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Each pixel of the output stands for the STRIDE x STRIDE pixels of x that begin at it."""
    program, channel = share(C, BLOCK_C)
    a, b = of_channel(scale, channel, C, WHOLE, ACC), of_channel(shift, channel, C, WHOLE, ACC)
    centre = of_channel(mean, channel, C, WHOLE, ACC)
    total = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    product = total
    slopes = ()
    for _ in tl.static_range(KERNEL * KERNEL):
        slopes += (total,)
    for turn in range(turns):
        image, row, column = place(program * turns + turn, pixels, OUT_H, OUT_W, BLOCK_P)
        output = address(dy, image, row, column, channel, OUT_H, OUT_W, C)
        for r in tl.static_range(STRIDE):
            for u in tl.static_range(STRIDE):
                down, right = row * STRIDE + r, column * STRIDE + u
                inside = within(down, right, channel, H, W, C, WHOLE)
                value = tl.load(address(x, image, down, right, channel, H, W, C), mask=inside, other=0.0).to(ACC)
                z = value * a + b
                s = sigmoid(z)
                activated = tl.where(inside, z * s, 0.0)
                grad = tl.zeros((BLOCK_P, BLOCK_C), ACC)
                updated = ()
                for k in tl.static_range(KERNEL * KERNEL):
                    if meets(r, k // KERNEL, KERNEL, STRIDE) and meets(u, k % KERNEL, KERNEL, STRIDE):
                        i, j = further(r, k // KERNEL, KERNEL, STRIDE), further(u, k % KERNEL, KERNEL, STRIDE)
                        there = within(row + i, column + j, channel, OUT_H, OUT_W, C, WHOLE)
                        upstream = tl.load(output + (i * OUT_W + j) * C, mask=there, other=0.0).to(ACC)
                        grad += upstream * of_channel(weight + k * C, channel, C, WHOLE, ACC)
                        updated += (slopes[k] + upstream * activated,)
                    else:
                        updated += (slopes[k],)
                slopes = updated
                grad = tl.where(inside, grad * s * (1.0 + z * (1.0 - s)), 0.0)
                tl.store(address(dz, image, down, right, channel, H, W, C), grad.to(dz.dtype.element_ty), mask=inside)
                total += grad
                product += grad * (value - centre)
    start = tl.cast(program, tl.int64) * C + channel
    tl.store(sums + start, tl.sum(total, 0), mask=channel < C)
    tl.store(sums + tl.cast(programs, tl.int64) * C + start, tl.sum(product, 0), mask=channel < C)
    start = tl.cast(program, tl.int64) * (KERNEL * KERNEL * C) + channel
    for k in tl.static_range(KERNEL * KERNEL):
        tl.store(dweight + start + k * C, tl.sum(slopes[k], 0), mask=channel < C)

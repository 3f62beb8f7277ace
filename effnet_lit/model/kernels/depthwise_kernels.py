"""Device code of the depthwise convolution, for ``depthwise``.

A program walks down LANES strips, COLUMNS output columns wide, for BLOCK_C channels at once. The rows under the kernel
stay in registers, so that each element is loaded and activated about once, not once a tap.
"""
# Kernels are Triton's language, which a type checker takes for Python
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from effnet_lit.model.kernels.moments import sigmoid, silu_slope, store_moments


@triton.jit
def share(C, BLOCK_C: tl.constexpr):
    """This program's number and its channels; neighbours share pixels, so that their lines meet in the cache."""
    blocks = tl.cdiv(C, BLOCK_C)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def place(turn, tiles, strips, across, rows, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """(image, first row, first column, is a tile) of each lane's tile; turns count through all programs."""
    tile = turn * LANES + tl.arange(0, LANES)
    image = (tile // (strips * across)).to(tl.int64)
    return image, tile // across % strips * rows, tile % across * COLUMNS, tile < tiles


@triton.jit
def pixel(image, row, column, real, channel, H, W, C):
    """(offsets, mask) [LANES, BLOCK_C] of one pixel a lane; offsets are 64-bit, a batch may pass 2^31 elements."""
    inside = real & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    offset = ((image * H + row) * W + column) * C
    return offset[:, None] + channel[None, :], inside[:, None] & (channel < C)[None, :]


@triton.jit
def load_taps(weight, channel, C, TAPS: tl.constexpr, ACC: tl.constexpr):
    """weight [TAPS, C] -> TAPS tensors [1, BLOCK_C]."""
    taps = ()
    for k in tl.static_range(TAPS):
        taps += (tl.load(weight + k * C + channel, mask=channel < C, other=0.0).to(ACC)[None, :],)
    return taps


@triton.jit
def load_activated(x, image, row, left, real, channel, scale, shift, H, W, C, COUNT: tl.constexpr, ACC: tl.constexpr):
    """silu(x * scale + shift) of COUNT pixels of a row; the zero padding is the activation's, not x's."""
    values = ()
    for j in tl.static_range(COUNT):
        offset, inside = pixel(image, row, left + j, real, channel, H, W, C)
        z = tl.load(x + offset, mask=inside, other=0.0).to(ACC) * scale + shift
        values += (tl.where(inside, z * sigmoid(z), 0.0),)
    return values


@triton.jit
def load_plain(x, image, row, left, real, channel, H, W, C, COUNT: tl.constexpr, ACC: tl.constexpr):
    """COUNT pixels of a row, zero outside."""
    values = ()
    for j in tl.static_range(COUNT):
        offset, inside = pixel(image, row, left + j, real, channel, H, W, C)
        values += (tl.load(x + offset, mask=inside, other=0.0).to(ACC),)
    return values


@triton.jit
def convolve(window, taps, q: tl.constexpr, WIDTH: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, like):
    """Output column q from the rows under the kernel."""
    value = tl.zeros_like(like)
    for kh in tl.static_range(KERNEL):
        for kw in tl.static_range(KERNEL):
            value += window[kh * WIDTH + q * STRIDE + kw] * taps[kh * KERNEL + kw]
    return value


@triton.jit
def forward_kernel(
    x,
    scale,
    shift,
    weight,
    y,
    moments,
    tiles,
    strips,
    across,
    rows,
    turns,
    programs,
    H,
    W,
    OUT_H,
    OUT_W,
    C,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    WIDTH: tl.constexpr = (COLUMNS - 1) * STRIDE + KERNEL  # input columns under the output ones
    program, channel = share(C, BLOCK_C)
    a = tl.load(scale + channel, mask=channel < C, other=0.0).to(ACC)[None, :]
    b = tl.load(shift + channel, mask=channel < C, other=0.0).to(ACC)[None, :]
    taps = load_taps(weight, channel, C, KERNEL * KERNEL, ACC)
    count = tl.zeros((LANES, BLOCK_C), ACC)
    pivot, total, square = count, count, count
    for turn in range(turns):
        image, top, left, real = place(program * turns + turn, tiles, strips, across, rows, LANES, COLUMNS)
        row = top * STRIDE - KERNEL // 2
        column = left * STRIDE - KERNEL // 2
        window = ()
        for i in tl.static_range(KERNEL - STRIDE):
            window += load_activated(x, image, row + i, column, real, channel, a, b, H, W, C, WIDTH, ACC)
        for t in range(rows):
            below = row + t * STRIDE + KERNEL - STRIDE
            for i in tl.static_range(STRIDE):
                window += load_activated(x, image, below + i, column, real, channel, a, b, H, W, C, WIDTH, ACC)
            for q in tl.static_range(COLUMNS):
                offset, inside = pixel(image, top + t, left + q, real, channel, OUT_H, OUT_W, C)
                stored = convolve(window, taps, q, WIDTH, KERNEL, STRIDE, count).to(y.dtype.element_ty)
                tl.store(y + offset, stored, mask=inside)
                value = stored.to(ACC)  # the statistics are those of what the next layer reads
                if q == 0:
                    pivot = tl.where(turn + t == 0, value, pivot)
                value = tl.where(inside, value - pivot, 0.0)
                count += tl.where(inside, 1.0, 0.0)
                total += value
                square += value * value
            window = window[STRIDE * WIDTH :]
    store_moments(moments, count, pivot, total, square, program, programs, channel, C)


@triton.constexpr_function
def source(position: int, tap: int, kernel: int, stride: int) -> int:
    """Row (or column) of the window of dy that row ``position`` of a step meets by ``tap``; -1 for none.

    Pixel i of x meets pixel (i + pad - tap) / stride of dy, where that divides.
    """
    distance = position + kernel // 2 - tap
    return distance // stride + kernel // 2 // stride if distance % stride == 0 else -1


@triton.jit
def transposed(
    window,
    taps,
    r: tl.constexpr,
    u: tl.constexpr,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    like,
):
    """Gradient of the activation at row r, column u of a step."""
    grad = tl.zeros_like(like)
    for kh in tl.static_range(KERNEL):
        for kw in tl.static_range(KERNEL):
            if source(r, kh, KERNEL, STRIDE) >= 0 and source(u, kw, KERNEL, STRIDE) >= 0:
                grad += (
                    window[source(r, kh, KERNEL, STRIDE) * WIDTH + source(u, kw, KERNEL, STRIDE)]
                    * taps[kh * KERNEL + kw]
                )
    return grad


@triton.jit
def tap_gradient(
    activated,
    window,
    kh: tl.constexpr,
    kw: tl.constexpr,
    SPAN: tl.constexpr,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    like,
):
    """A step's products of activation and dy for one tap, paired as in ``transposed``."""
    slope = tl.zeros_like(like)
    for r in tl.static_range(STRIDE):
        for u in tl.static_range(SPAN):
            if source(r, kh, KERNEL, STRIDE) >= 0 and source(u, kw, KERNEL, STRIDE) >= 0:
                slope += (
                    activated[r * SPAN + u]
                    * window[source(r, kh, KERNEL, STRIDE) * WIDTH + source(u, kw, KERNEL, STRIDE)]
                )
    return slope


@triton.jit
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
    tiles,
    strips,
    across,
    rows,
    turns,
    programs,
    H,
    W,
    OUT_H,
    OUT_W,
    C,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """A step reads one new row of dy, the last that STRIDE rows of x need, and finishes those."""
    ABOVE: tl.constexpr = KERNEL // 2 // STRIDE  # rows of dy above the step's own that it needs
    HEIGHT: tl.constexpr = ABOVE + (STRIDE - 1 + KERNEL // 2) // STRIDE + 1
    WIDTH: tl.constexpr = COLUMNS + HEIGHT - 1
    SPAN: tl.constexpr = COLUMNS * STRIDE  # columns of x
    program, channel = share(C, BLOCK_C)
    a = tl.load(scale + channel, mask=channel < C, other=0.0).to(ACC)[None, :]
    b = tl.load(shift + channel, mask=channel < C, other=0.0).to(ACC)[None, :]
    centre = tl.load(mean + channel, mask=channel < C, other=0.0).to(ACC)[None, :]
    taps = load_taps(weight, channel, C, KERNEL * KERNEL, ACC)
    total = tl.zeros((LANES, BLOCK_C), ACC)
    product = total
    slopes = ()
    for _ in tl.static_range(KERNEL * KERNEL):
        slopes += (total,)
    for turn in range(turns):
        image, top, left, real = place(program * turns + turn, tiles, strips, across, rows, LANES, COLUMNS)
        column = left - ABOVE
        window = ()
        for i in tl.static_range(HEIGHT - 1):
            window += load_plain(dy, image, top - ABOVE + i, column, real, channel, OUT_H, OUT_W, C, WIDTH, ACC)
        for t in range(rows):
            below = top + t - ABOVE + HEIGHT - 1
            window += load_plain(dy, image, below, column, real, channel, OUT_H, OUT_W, C, WIDTH, ACC)
            activated = ()
            for i in tl.static_range(STRIDE * SPAN):
                down = (top + t) * STRIDE + i // SPAN
                offset, inside = pixel(image, down, left * STRIDE + i % SPAN, real, channel, H, W, C)
                value = tl.load(x + offset, mask=inside, other=0.0).to(ACC)
                z = value * a + b
                activated += (tl.where(inside, z * sigmoid(z), 0.0),)
                grad = transposed(window, taps, i // SPAN, i % SPAN, WIDTH, KERNEL, STRIDE, total)
                grad = tl.where(inside, grad * silu_slope(z), 0.0)
                tl.store(dz + offset, grad.to(dz.dtype.element_ty), mask=inside)
                total += grad
                product += grad * (value - centre)
            updated = ()
            for k in tl.static_range(KERNEL * KERNEL):
                step = tap_gradient(activated, window, k // KERNEL, k % KERNEL, SPAN, WIDTH, KERNEL, STRIDE, total)
                updated += (slopes[k] + step,)
            slopes = updated
            window = window[WIDTH:]
    within = channel < C
    start = tl.cast(program, tl.int64) * C + channel
    tl.store(sums + start, tl.sum(total, 0), mask=within)
    tl.store(sums + tl.cast(programs, tl.int64) * C + start, tl.sum(product, 0), mask=within)
    start = tl.cast(program, tl.int64) * (KERNEL * KERNEL * C) + channel
    for k in tl.static_range(KERNEL * KERNEL):
        tl.store(dweight + start + k * C, tl.sum(slopes[k], 0), mask=within)

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

from effnet_lit.model.kernels.moments import sigmoid, store_moments

LEAST_SPECIAL = ["groups", "turns", "programs", "H", "W", "OUT_H", "OUT_W"]  # one compilation for all image sizes
OUTSIDE = tl.constexpr(-(2**20))  # a row that no image has


@triton.jit
def share(C, BLOCK_C: tl.constexpr):
    """This program's number and its channels; neighbours share pixels, so that their lines meet in the cache."""
    blocks = tl.cdiv(C, BLOCK_C)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def place(turn, groups, H, ROWS: tl.constexpr, BLOCK_G: tl.constexpr):
    """(image, first row) [BLOCK_G] of groups of ROWS rows of the output; after the last group the row is OUTSIDE."""
    group = turn * BLOCK_G + tl.arange(0, BLOCK_G)
    of_image = tl.cdiv(H, ROWS)
    image = (group.to(tl.uint32) // of_image.to(tl.uint32)).to(tl.int32)  # unsigned division is the cheaper one
    return image, tl.where(group < groups, (group - image * of_image) * ROWS, OUTSIDE)


@triton.jit
def line(tensor, image, row, channel, H, W, C):
    """[BLOCK_G, BLOCK_C]: where a row of tensor [N, H, W, C] begins; 64-bit, a batch may pass 2^31 elements."""
    return tensor + ((image * H + row).to(tl.int64) * W * C)[:, None] + channel[None, :]


@triton.jit
def within(row, column, channel, H, W, C, WHOLE: tl.constexpr):
    """[BLOCK_G, 1] or [BLOCK_G, BLOCK_C]: rows and a column of the image, channels that exist; with WHOLE all do."""
    rows = tl.where(column < W, H, 0)
    inside = row.to(tl.uint32) < rows.to(tl.uint32)  # as unsigned numbers, those below 0 are large
    return inside[:, None] if WHOLE else inside[:, None] & (channel < C)[None, :]


@triton.jit
def of_channel(vector, channel, C, WHOLE: tl.constexpr, ACC: tl.constexpr):
    """vector [C] -> [1, BLOCK_C]."""
    values = tl.load(vector + channel) if WHOLE else tl.load(vector + channel, mask=channel < C, other=0.0)
    return values.to(ACC)[None, :]


@triton.jit
def load_taps(weight, channel, C, KERNEL: tl.constexpr, WHOLE: tl.constexpr, ACC: tl.constexpr):
    """weight [C, KERNEL * KERNEL] -> a [1, BLOCK_C] for each tap."""
    taps = ()
    for k in tl.static_range(KERNEL * KERNEL):
        place = weight + channel * (KERNEL * KERNEL) + k
        values = tl.load(place) if WHOLE else tl.load(place, mask=channel < C, other=0.0)
        taps += (values.to(ACC)[None, :],)
    return taps


@triton.constexpr_function
def meets(position: int, tap: int, kernel: int, stride: int) -> bool:
    """Whether row (or column) ``position`` of the STRIDE that belong to an output meets any output by ``tap``."""
    return (position + kernel // 2 - tap) % stride == 0


@triton.constexpr_function
def further(position: int, tap: int, kernel: int, stride: int) -> int:
    """How many outputs further."""
    return (position + kernel // 2 - tap) // stride


@triton.constexpr_function
def nearest(kernel: int, stride: int) -> int:
    """The first output, counted from its own, that a row (or column) of x meets."""
    return -((kernel - 1 - kernel // 2) // stride)


@triton.constexpr_function
def farthest(kernel: int, stride: int) -> int:
    """The last one."""
    return (stride - 1 + kernel // 2) // stride


@triton.constexpr_function
def met(row: int, column: int, tap: int, rows: int, kernel: int, stride: int) -> int:
    """Where in a window, for ``rows`` of the output, that output stands which ``row`` and ``column`` of x meet by
    ``tap``."""
    first = nearest(kernel, stride)
    down = row // stride + further(row % stride, tap // kernel, kernel, stride) - first
    right = further(column, tap % kernel, kernel, stride) - first
    return right * (rows + farthest(kernel, stride) - first) + down


@triton.jit
def load_columns(
    base,
    row,
    column,
    channel,
    H,
    W,
    C,
    FIRST: tl.constexpr,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """LINES rows, the first of them FIRST after ``row``, of so many columns from ``base`` on, column by column."""
    values = ()
    for j in tl.static_range(COLUMNS):
        for i in tl.static_range(LINES):
            there = within(row + (FIRST + i), column + j, channel, H, W, C, WHOLE)
            values += (tl.load(base + ((FIRST + i) * W + j) * C, mask=there, other=0.0),)
    return values


@triton.jit
def in_precision(values, COUNT: tl.constexpr, ACC: tl.constexpr):
    """As what the kernel computes in."""
    result = ()
    for i in tl.static_range(COUNT):
        result += (values[i].to(ACC),)
    return result


@triton.jit
def without_first(values, DROPPED: tl.constexpr, COUNT: tl.constexpr):
    """The COUNT values after the first DROPPED."""
    result = ()
    for i in tl.static_range(COUNT):
        result += (values[DROPPED + i],)
    return result


@triton.jit
def zeros(COUNT: tl.constexpr, zero):
    """COUNT times ``zero``."""
    result = ()
    for _ in tl.static_range(COUNT):
        result += (zero,)
    return result


@triton.jit
def activate_columns(
    values,
    row,
    column,
    channel,
    a,
    b,
    H,
    W,
    C,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):
    """silu(x * a + b) of what ``load_columns`` gave, 0 outside the image."""
    activated = ()
    for j in tl.static_range(COLUMNS):
        for i in tl.static_range(LINES):
            z = values[j * LINES + i].to(ACC) * a + b
            inside = within(row + i, column + j, channel, H, W, C, WHOLE)
            activated += (tl.where(inside, z * sigmoid(z), 0.0),)
    return activated


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
                    grad = zero
                    updated = ()
                    for k in tl.static_range(KERNEL * KERNEL):
                        if meets(q % STRIDE, k // KERNEL, KERNEL, STRIDE) and meets(v, k % KERNEL, KERNEL, STRIDE):
                            grad += seen[met(q, v, k, ROWS, KERNEL, STRIDE)] * taps[k]
                            updated += (slopes[k] + seen[met(q, v, k, ROWS, KERNEL, STRIDE)] * activated,)
                        else:
                            updated += (slopes[k],)
                    slopes = updated
                    grad = tl.where(inside, grad * s * (1.0 + z * (1.0 - s)), 0.0)
                    tl.store(dz + offset + (q * W + v) * C, grad.to(dz.dtype.element_ty), mask=inside)
                    total += grad
                    product += grad * (value - centre)
            window = without_first(seen, LINES, (LAST - FIRST) * LINES)
            newest, inputs = following, following_inputs
            offset += STRIDE * C
    start = tl.cast(program, tl.int64) * C + channel
    tl.store(sums + start, tl.sum(total, 0), mask=channel < C)
    tl.store(sums + tl.cast(programs, tl.int64) * C + start, tl.sum(product, 0), mask=channel < C)
    start = (tl.cast(program, tl.int64) * C + channel) * (KERNEL * KERNEL)
    for k in tl.static_range(KERNEL * KERNEL):
        tl.store(dweight + start + k, tl.sum(slopes[k], 0), mask=channel < C)

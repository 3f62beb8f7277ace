"""Windows of pixels in registers, for ``depthwise_kernels``: where they lie, what is loaded into them, what taps see in
them. A window is a tuple of [BLOCK_G, BLOCK_C] tensors, column by column."""
# Kernels are Triton's language, which a type checker takes for Python
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from effnet_lit.model.kernels.arithmetic import sigmoid

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

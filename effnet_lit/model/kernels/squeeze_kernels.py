"""Device code of squeeze-and-excitation, a program for each image, for ``squeeze``."""
# Kernels are Triton's language, which a type checker takes for Python
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from effnet_lit.model.kernels.arithmetic import load_rows, sigmoid, silu_slope

LEAST_SPECIAL = ["images", "pixels"]


@triton.jit
def of_image(values, image, channel, C):
    """values [N, C] -> [BLOCK_C]."""
    return tl.load(values + image * C + channel, mask=channel < C, other=0.0)


@triton.jit
def matrix(weight, row, column, ROWS, COLUMNS, ACC: tl.constexpr):
    """weight [ROWS, COLUMNS] at ``row`` x ``column``, 0 outside."""
    inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    return tl.load(weight + row[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0).to(ACC)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def squeeze_kernel(
    sums,
    reduce,
    reduce_bias,
    expand,
    expand_bias,
    pooled,
    squeezed,
    activated,
    gate,
    pixels,
    C,
    S,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
):
    image = tl.program_id(0)
    s = tl.arange(0, BLOCK_S)
    z = tl.load(reduce_bias + s, mask=s < S, other=0.0).to(ACC)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        mean = of_image(sums, image, channel, C) / pixels
        tl.store(pooled + image * C + channel, mean, mask=channel < C)
        z += tl.sum(matrix(reduce, s, channel, S, C, ACC) * mean[None, :], 1)
    tl.store(squeezed + image * S + s, z, mask=s < S)
    value = z * sigmoid(z)
    tl.store(activated + image * S + s, value, mask=s < S)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        bias = tl.load(expand_bias + channel, mask=channel < C, other=0.0).to(ACC)
        logit = bias + tl.sum(matrix(expand, channel, s, C, S, ACC) * value[None, :], 1)
        tl.store(gate + image * C + channel, sigmoid(logit), mask=channel < C)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def squeeze_backward_kernel(
    sums,
    reduce,
    expand,
    squeezed,
    gate,
    dlogit,
    dsqueezed,
    dpooled,
    norm_sums,
    images,
    pixels,
    C,
    S,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
):
    """From what ``gate_sums`` gives: gradients of the gate's logits, of what was squeezed and of the mean, over pixels;
    and the image's share of the sums that the BatchNorm needs."""
    image = tl.program_id(0)
    step = tl.cast(images, tl.int64) * C
    s = tl.arange(0, BLOCK_S)
    dactivated = tl.zeros((BLOCK_S,), ACC)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        g = of_image(gate, image, channel, C)
        grad = of_image(sums, image, channel, C) * g * (1.0 - g)
        tl.store(dlogit + image * C + channel, grad, mask=channel < C)
        dactivated += tl.sum(matrix(expand, channel, s, C, S, ACC) * grad[:, None], 0)
    z = tl.load(squeezed + image * S + s, mask=s < S, other=0.0)
    dz = dactivated * silu_slope(z)
    tl.store(dsqueezed + image * S + s, dz, mask=s < S)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = channel < C
        g = of_image(gate, image, channel, C)
        grad = tl.sum(matrix(reduce, s, channel, S, C, ACC) * dz[:, None], 0) / pixels
        tl.store(dpooled + image * C + channel, grad, mask=inside)
        total = g * of_image(sums + step, image, channel, C)
        total += grad * of_image(sums + 2 * step, image, channel, C)
        centred = g * of_image(sums + 3 * step, image, channel, C)
        centred += grad * of_image(sums + 4 * step, image, channel, C)
        tl.store(norm_sums + image * C + channel, total, mask=inside)
        tl.store(norm_sums + (images + image) * C + channel, centred, mask=inside)


@triton.jit(do_not_specialize=LEAST_SPECIAL)
def parameters_kernel(
    dlogit,
    dsqueezed,
    pooled,
    activated,
    dreduce,
    dreduce_bias,
    dexpand,
    dexpand_bias,
    images,
    C,
    S,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
):
    """Products over images, for BLOCK_C channels; small as they are, a call of a library takes longer."""
    channel, s = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    reduced = tl.zeros((BLOCK_S, BLOCK_C), ACC)
    expanded = tl.zeros((BLOCK_C, BLOCK_S), ACC)
    reduced_bias, expanded_bias = tl.zeros((BLOCK_S,), ACC), tl.zeros((BLOCK_C,), ACC)
    for first in range(0, images, BLOCK_N):
        of_logit = load_rows(dlogit, first, images, channel, C, BLOCK_N, ACC)
        of_mean = load_rows(pooled, first, images, channel, C, BLOCK_N, ACC)
        of_z = load_rows(dsqueezed, first, images, s, S, BLOCK_N, ACC)
        value = load_rows(activated, first, images, s, S, BLOCK_N, ACC)
        expanded += tl.dot(tl.trans(of_logit), value, input_precision="ieee", out_dtype=ACC)
        reduced += tl.dot(tl.trans(of_z), of_mean, input_precision="ieee", out_dtype=ACC)
        expanded_bias += tl.sum(of_logit, 0)
        reduced_bias += tl.sum(of_z, 0)
    c_inside, s_inside = channel < C, s < S
    inside = s_inside[:, None] & c_inside[None, :]
    tl.store(dreduce + s[:, None] * C + channel[None, :], reduced.to(dreduce.dtype.element_ty), mask=inside)
    inside = c_inside[:, None] & s_inside[None, :]
    tl.store(dexpand + channel[:, None] * S + s[None, :], expanded.to(dexpand.dtype.element_ty), mask=inside)
    tl.store(dexpand_bias + channel, expanded_bias.to(dexpand_bias.dtype.element_ty), mask=c_inside)
    if tl.program_id(0) == 0:
        tl.store(dreduce_bias + s, reduced_bias.to(dreduce_bias.dtype.element_ty), mask=s_inside)

"""BatchNorm of a batch that comes in pieces, and BatchNorm folded into the 1x1 convolution before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from effnet_lit.model.cpu.pieces import as_images, rows, total
from effnet_lit.model.cpu.threads import each

aten = torch.ops.aten


class Statistics(NamedTuple):
    """Mean and 1 / deviation (C) of a batch, and how many pixels it had."""

    mean: Tensor
    inverse: Tensor
    pixels: int


class Moments(NamedTuple):
    """Mean and variance (C) of one piece, and how many pixels it has."""

    mean: Tensor
    variance: Tensor
    pixels: int


def moments_of(piece: Tensor) -> Moments:
    """Of (N, C, H, W)."""
    mean, variance = aten.batch_norm_update_stats(piece, None, None, 0.0)
    return Moments(mean, variance, pixel_count(piece))


def statistics_of(pieces: Sequence[Moments], norm: nn.BatchNorm2d) -> Statistics:
    """Of all pieces together, merged in float64 (Chan et al. 1983, equation 2.1)."""
    means = torch.stack([piece.mean for piece in pieces]).double()  # (pieces, C)
    variances = torch.stack([piece.variance for piece in pieces]).double()
    pixels = sum(piece.pixels for piece in pieces)
    share = torch.tensor([[piece.pixels / pixels] for piece in pieces], dtype=torch.float64)
    mean = (share * means).sum(0)
    return settle(mean, (share * (variances + (means - mean) ** 2)).sum(0), pixels, norm)


def pixel_count(x: Tensor) -> int:
    """(N, C, H, W) -> N H W."""
    return x.numel() // x.shape[1]


def settle(mean: Tensor, variance: Tensor, count: int, norm: nn.BatchNorm2d) -> Statistics:
    """Update the running statistics as BatchNorm does, and return this batch's in the layer's precision."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None
    precision = norm.running_mean.dtype
    unbiased = variance * (count / max(1, count - 1))
    norm.running_mean.lerp_(mean.to(precision), norm.momentum)
    norm.running_var.lerp_(unbiased.to(precision), norm.momentum)
    norm.num_batches_tracked += 1
    return Statistics(mean.to(precision), (variance + norm.eps).rsqrt().to(precision), count)


def normalise(raw: Tensor, statistics: Statistics, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """Of one piece."""
    factor = scale * statistics.inverse
    pixels = None if out is None else rows(out)
    return as_images(torch.addcmul(shift - statistics.mean * factor, rows(raw), factor, out=pixels), raw)


def norm_gradients(gradient: Tensor, raw: Tensor, statistics: Statistics, scale: Tensor) -> Tensor:
    """Of scale and shift, (2, C), by one piece: sums of dz times normalised raw, and of dz."""
    mean, inverse = statistics.mean, statistics.inverse
    _, by_scale, by_shift = aten.native_batch_norm_backward(
        gradient, raw, scale, None, None, mean, inverse, True, 0.0, [False, True, True]
    )
    return torch.stack([by_scale, by_shift])


def through_norm(statistics: Statistics, scale: Tensor, gradients: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(dz, raw) of one piece -> gradient of raw, given the gradients (2, C) of scale and shift by the whole batch."""
    by_scale, by_shift = gradients / statistics.pixels
    factor = scale * statistics.inverse
    by_raw = -factor * statistics.inverse * by_scale
    constant = -factor * by_shift - by_raw * statistics.mean

    def gradient(dz: Tensor, raw: Tensor) -> Tensor:
        return as_images(torch.addcmul(constant, rows(raw), by_raw).addcmul_(rows(dz), factor), raw)

    return gradient


# ---- 1x1 convolution with the BatchNorm behind it, folded into one matrix


class Folded(NamedTuple):
    """``weight`` (E, C, 1, 1) and ``bias`` (E) map pixels to normalised outputs; ``mean`` (C) is of all pixels,
    ``along`` (E, C) the raw outputs' covariances with them, ``inverse`` (E) 1 / deviation of these."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    along: Tensor
    inverse: Tensor
    pixels: int


def fold(pieces: Sequence[Tensor], weight: Tensor, scale: Tensor, shift: Tensor, norm: nn.BatchNorm2d) -> Folded:
    """Where raw = W x, its mean is W mean(x) and its variance the diagonal of W Cov(x) W^T: few channels come in, so
    this takes far less than looking at all that come out."""
    around = pieces[0].mean((0, 2, 3))
    sums, products = zip(*each(lambda piece: moments_around(around, piece), pieces), strict=True)
    pixels = sum(pixel_count(piece) for piece in pieces)
    off = total(sums) / pixels
    covariance = total(products) / pixels - torch.outer(off, off)
    mean, w = around + off, weight.flatten(1)  # (C), (E, C)
    along = w @ covariance
    centre, variance = w @ mean, (along * w).sum(1).clamp(min=0)
    statistics = settle(centre, variance, pixels, norm)
    factor = scale * statistics.inverse
    folded, bias = factor[:, None] * w, shift - centre * factor
    return Folded(folded.view_as(weight), bias, mean, along, statistics.inverse, pixels)


def moments_around(point: Tensor, piece: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (C) of its pixels less ``point`` (C) and (C, C) of their products. Near the mean: differences of larger
    sums would lose small variances."""
    pixels = rows(piece) - point
    return pixels.sum(0), pixels.t() @ pixels


class Unfolded(NamedTuple):
    """Gradients of weight, scale and shift, and what the input's gradient lacks: ``weight`` (C, C, 1, 1) and ``bias``
    (C) of one more 1x1 convolution of the input."""

    by_weight: Tensor
    by_scale: Tensor
    by_shift: Tensor
    weight: Tensor
    bias: Tensor


def unfold(folded: Folded, weight: Tensor, scale: Tensor, by_folded: Tensor, by_bias: Tensor) -> Unfolded:
    """From the gradients by ``folded``'s weight (E, C, 1, 1) and bias (E), which take mean and deviation as
    constants, to those of what it was made of.

    With Dc = dz^T (x - mean), the gradient of scale is the diagonal of Dc W^T / deviation; BatchNorm's backward, dz
    less its mean and less its part along the normalised raw outputs, is linear in dz, x and 1, so what it adds to dz
    (factor W) is one small product with [x, 1].
    """
    w = weight.flatten(1)
    by_centred = by_folded.flatten(1) - torch.outer(by_bias, folded.mean)
    by_scale = (by_centred * w).sum(1) * folded.inverse
    factor, part = scale * folded.inverse, folded.inverse * by_scale
    by_weight = factor[:, None] * (by_centred - part[:, None] * folded.along)
    lacking = -w.t() @ ((factor * part / folded.pixels)[:, None] * w)  # (C, C), symmetric
    constant = -(factor * by_bias / folded.pixels) @ w - folded.mean @ lacking
    return Unfolded(by_weight.view_as(weight), by_scale, by_bias, lacking[:, :, None, None], constant)

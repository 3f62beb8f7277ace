"""Mean and variance of a channel from many programs, without atomics: each program writes the count, mean and sum of
squared deviations (M2) of what it saw, and they are merged as in Chan, Golub and LeVeque 1983."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lane_counts(first, pixels, turns, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """[BLOCK_P, BLOCK_C]: of the pixels from ``first`` on, BLOCK_P a turn, how many each lane met before the last."""
    left = pixels - first - tl.arange(0, BLOCK_P)
    count = tl.minimum(tl.maximum(tl.cdiv(left, BLOCK_P), 0), turns).to(ACC)
    return tl.broadcast_to(count[:, None], (BLOCK_P, BLOCK_C))


@triton.jit
def store_moments(out, count, pivot, total, square, program, programs, channel, C):
    """Merge the lanes [L, BLOCK_C] of a program, which summed value - pivot and its square, into out [3, programs, C].

    A pivot near the values keeps float32 from cancelling where the mean is large beside the deviation.
    """
    safe = tl.maximum(count, 1.0)
    lane_mean = pivot + total / safe
    lane_m2 = square - total * total / safe
    whole = tl.sum(count, 0)
    mean = tl.sum(tl.where(count > 0, count * lane_mean, 0.0), 0) / tl.maximum(whole, 1.0)
    gap = tl.where(count > 0, lane_mean - mean[None, :], 0.0)
    m2 = tl.sum(tl.where(count > 0, lane_m2 + count * gap * gap, 0.0), 0)
    inside = channel < C
    step = tl.cast(programs, tl.int64) * C
    place = out + tl.cast(program, tl.int64) * C + channel
    tl.store(place, whole, mask=inside)
    tl.store(place + step, mean, mask=inside)
    tl.store(place + 2 * step, m2, mask=inside)

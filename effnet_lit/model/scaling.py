"""Compound scaling: one coefficient widens, deepens and enlarges the network together (arXiv 1905.11946, section 3).

The paper scales depth by 1.2^phi, width by 1.1^phi and resolution by 1.15^phi; the published B1 to B7 are rounded
versions of that, and it is those the table holds.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Scale(NamedTuple):
    """What a member of the family multiplies B0 by; resolution in pixels."""

    width: float
    depth: float
    resolution: int
    dropout_rate: float


SCALES = {
    #                         width depth resolution dropout
    "efficientnet_b0": Scale(1.0, 1.0, 224, 0.2),
    "efficientnet_b1": Scale(1.0, 1.1, 240, 0.2),
    "efficientnet_b2": Scale(1.1, 1.2, 260, 0.3),
    "efficientnet_b3": Scale(1.2, 1.4, 300, 0.3),
    "efficientnet_b4": Scale(1.4, 1.8, 380, 0.4),
    "efficientnet_b5": Scale(1.6, 2.2, 456, 0.4),
    "efficientnet_b6": Scale(1.8, 2.6, 528, 0.5),
    "efficientnet_b7": Scale(2.0, 3.1, 600, 0.5),
    "efficientnet_lite0": Scale(1.0, 1.0, 224, 0.2),
}
LITE = "efficientnet_lite0"  # B0 without gates and with ReLU6, for accelerators that know neither gates nor SiLU
CHANNEL_MULTIPLE = 8


def scale_channels(channels: int, width: float) -> int:
    """Nearest multiple of 8, but never below 90% of the exact width."""
    exact = channels * width
    rounded = max(CHANNEL_MULTIPLE, int(exact + CHANNEL_MULTIPLE / 2) // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE)
    return rounded if rounded >= 0.9 * exact else rounded + CHANNEL_MULTIPLE


def scale_repeats(repeats: int, depth: float) -> int:
    """Rounded up: a stage never loses a block."""
    return math.ceil(repeats * depth)

"""Compound scaling: rounding rules and the published sizes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from effnet_lit.model.scaling import SCALES, scale_channels, scale_repeats


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [
        (32, 1.0, 32),
        (32, 1.1, 32),
        (24, 1.1, 24),
        (40, 1.1, 48),
        (1280, 1.1, 1408),
        (16, 1.4, 24),
        (112, 1.2, 136),
        (320, 2.0, 640),
    ],
)
def test_channels_are_multiples_of_eight_near_the_exact_width(channels: int, width: float, expected: int) -> None:
    assert scale_channels(channels, width) == expected


def test_channels_never_fall_below_nine_tenths() -> None:
    for channels in range(8, 400, 4):
        for scale in SCALES.values():
            scaled = scale_channels(channels, scale.width)
            assert scaled % 8 == 0
            assert scaled >= 0.9 * channels * scale.width


def test_repeats_round_up() -> None:
    assert [scale_repeats(n, 1.1) for n in (1, 2, 3, 4)] == [2, 3, 4, 5]


def test_the_table_grows_with_the_coefficient() -> None:
    sizes = [SCALES[f"efficientnet_b{i}"] for i in range(8)]
    assert [s.resolution for s in sizes] == [224, 240, 260, 300, 380, 456, 528, 600]
    for smaller, larger in pairwise(sizes):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))

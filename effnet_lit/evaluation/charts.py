"""Small line charts as SVG text that takes its colours from the page it stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 40


class Line(NamedTuple):
    """Points in the chart's own units; ``kind`` is a class of the page's style: c0, c1, even."""

    label: str
    kind: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


class Axis(NamedTuple):
    """What it says, from where to where, where ticks stand, and how they are written."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    form: str = "{:g}"


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> Markup:
    """An SVG with grid, ticks, labels and a title for those who do not see it."""

    def right(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - x.low) / ((x.high - x.low) or 1)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y.low) / ((y.high - y.low) or 1)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    for tick in y.ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {up(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" class="end">{y.form.format(tick)}</text>')
    for tick in x.ticks:
        parts.append(
            f'<text x="{right(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" class="middle">{x.form.format(tick)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" class="middle">{escape(x.label)}</text>')
    for line in lines:
        places = [(right(a), up(min(max(b, y.low), y.high))) for a, b in line.points]
        if len(places) > 1:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
            parts.append(f'<path class="line {line.kind}" d="M{path}"/>')
        if line.dots or len(places) == 1:
            parts += [f'<circle class="dot {line.kind}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places]
    return Markup("".join([*parts, "</svg>"]))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most ``count`` + 1 round numbers from ``low`` to ``high``."""
    span = (high - low) or 1.0
    step = 10.0**-20
    for power in range(-6, 7):
        for factor in (1, 2, 5):
            step = factor * 10.0**power
            if span / step <= count:
                first = -(-low // step)
                return [round((first + i) * step, 10) for i in range(int((high - first * step) / step + 1e-9) + 1)]
    return [low, high]

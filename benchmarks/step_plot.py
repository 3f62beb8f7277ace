"""The results of ``benchmarks.step`` as a picture: speed and memory beside each other, one row a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state

from benchmarks.step_table import DEVICE, DTYPE, TRAINS_LESS, headline, precision, where

OURS, LESS, THEIRS, OTHERS = "#1f6feb", "#a5c8ff", "#9aa5b1", "#d5dae0"
INCHES_A_BAR = 0.3


def plot_step(results: dict[str, Any], target: Path) -> None:
    """Write the PNG; a device that was not measured has no row."""
    shown = {device: headline(results[device], device) for device in DEVICE if device in results}
    assert shown, "nothing is measured yet: python -m benchmarks.step"
    heights = [len(shape["contenders"]) + 2 for shape in shown.values()]
    figure = Figure(figsize=(11, 0.4 + INCHES_A_BAR * sum(heights)), layout="constrained")
    rows = figure.subplots(len(shown), 2, squeeze=False, height_ratios=heights)
    for (speed, memory), (device, shape) in zip(rows, shown.items(), strict=True):
        contenders = shape["contenders"]
        rates = {name: found["images_per_s"]["median"] for name, found in contenders.items()}
        ranges = [
            (
                found["images_per_s"]["median"] - found["images_per_s"]["low"],
                found["images_per_s"]["high"] - found["images_per_s"]["median"],
            )
            for found in contenders.values()
        ]
        draw(speed, rates, f"{where(device, shape)}, {DTYPE[device]}: images/s, more is better", ranges)
        draw(
            memory,
            {name: found["peak_bytes"] / 1e9 for name, found in contenders.items()},
            "peak memory in GB, less is better",
        )
        memory.set_yticklabels([])
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def colour(name: str) -> str:
    """Of a contender's bar."""
    if name == TRAINS_LESS:
        return LESS
    return OURS if name.startswith("ours") else THEIRS if "," in name else OTHERS


def draw(axes: Axes, values: dict[str, float], heading: str, ranges: list[tuple[float, float]] | None = None) -> None:
    """Horizontal bars, the first on top, each with its value; ranges as thin lines (below, above)."""
    colours = [colour(name) for name in values]
    names = [f"{name} (trains less)" if name == TRAINS_LESS else name for name in values]
    errors = [list(side) for side in zip(*ranges, strict=True)] if ranges else None
    bars = axes.barh(names, list(values.values()), color=colours, xerr=errors, ecolor="#444c56", height=0.72)
    labels = [format(value, precision(value) if ranges else ".2f") for value in values.values()]
    axes.bar_label(bars, labels, padding=6, fontsize=9)
    axes.set_title(heading, fontsize=10, loc="left")
    axes.invert_yaxis()
    axes.margins(x=0.14, y=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)

"""The results of ``benchmarks.step`` as Markdown, and beside their targets: from the JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.timing import Spread, best, ratio, verdict

Shape = dict[str, Any]  # one batch and image size: its contenders' figures
BYTES_AN_IMAGE = 299e6  # moved by an unfused step of B0 at 224 pixels in 16 bits; twice that in 32 bits
HEADLINE = {"cpu": 32, "gpu": 256}  # the batch that is shown in full
DEVICE = {"cpu": "CPU", "gpu": "GPU"}
DTYPE = {"cpu": "float32", "gpu": "bf16 autocast"}
RIVALS = ("torchvision", "timm")
SPEED = {  # variant of the rivals: how many times as fast ours should be
    "cpu": {"best": 1.3, "our allocator": 1.1, "defaults": 2.2},
    "gpu": {"best": 1.5, "compiled": 1.1},
}
MEMORY = {"activations": 55, "blocks": 35}  # at most so many percent of torchvision's
ACTIVATIONS_SPEED = 0.95  # at least, of the speed without
TRAINS_LESS = "ours, fine-tuning"  # than the rivals, so never beside them
LARGE_BATCH_RATE = 10_000  # images/s on a GPU at the headline's batch


def ceiling(bytes_per_s: float, size: int, device: str) -> float:
    """Images per second if a step did nothing but move what an unfused one moves, at a copy's speed."""
    return bytes_per_s / (BYTES_AN_IMAGE * (2 if device == "cpu" else 1) * (size / 224) ** 2)


def headline(part: dict[str, Any], device: str) -> Shape:
    """The shape nearest to 224 pixels and the headline's batch."""
    return min(part["shapes"], key=lambda shape: (abs(shape["size"] - 224), abs(shape["batch"] - HEADLINE[device])))


def step_table(results: dict[str, Any]) -> str:
    """Markdown: what was measured where, the headline shapes in full, the targets, every other shape's speed."""
    if not results:
        return "Not measured yet."
    shown = {device: headline(results[device], device) for device in DEVICE if device in results}
    lines = [description(device, results[device], shape) for device, shape in shown.items()]
    lines += ["", *full_table(shown), ""]
    for device in shown:
        lines += [f"- {where(device, judged)}: {line}" for judged, line in verdicts(device, results[device])]
    if sum(len(results[device]["shapes"]) for device in shown) > len(shown):
        lines += ["", *shapes_table(results)]
    return "\n".join(lines)


def description(device: str, part: dict[str, Any], shape: Shape) -> str:
    """One item of a list: machine, batch, versions, bandwidth."""
    here, known = part["machine"], part["machine"]["versions"]
    packages = ", ".join(f"{name} {known[name]}" for name in ("torch", *RIVALS))
    work = f"batch {shape['batch']}, {shape['size']} px, {DTYPE[device]}"
    copy = f"a copy reads and writes {shape['copy_bytes_per_s'] / 1e9:,.0f} GB/s"
    return (
        f"- **{DEVICE[device]}**: {part['device']}, {here['cores']} cores; {work}; {packages}; {copy}; {here['date']}"
    )


def where(device: str, shape: Shape) -> str:
    """Such as CPU 224 px, batch 32."""
    return f"{DEVICE[device]} {shape['size']} px, batch {shape['batch']}"


def full_table(shown: Mapping[str, Shape]) -> Iterator[str]:
    """A row for each contender, four columns for each device; one that says so where it was not measured."""
    columns = ("images/s", "peak memory, GB", "kept for backward, MB an image", "share of the ceiling")
    titles = ["network"]
    for device, name in DEVICE.items():
        titles += [f"{name}: {column}" for column in columns] if device in shown else [name]
    yield "| " + " | ".join(titles) + " |"
    yield "|---" + "|---:" * (len(titles) - 1) + "|"
    for name in dict.fromkeys(name for shape in shown.values() for name in (*shape["contenders"], *shape["absent"])):
        cells = [name]
        for device in DEVICE:
            cells += full_cells(shown[device], name, len(columns)) if device in shown else ["not measured"]
        yield "| " + " | ".join(cells) + " |"


def full_cells(shape: Shape, name: str, count: int) -> list[str]:
    """One contender's figures, or why there are none."""
    if name not in shape["contenders"]:
        return [shape["absent"].get(name, "-")] + ["-"] * (count - 1)
    found = shape["contenders"][name]
    kept, share = found["kept_bytes"], found["share_of_ceiling"]
    return [
        Spread(**found["images_per_s"]).text(precision(found["images_per_s"]["median"])),
        f"{found['peak_bytes'] / 1e9:.2f}",
        "-" if kept is None else f"{kept / shape['batch'] / 1e6:.1f}",
        "-" if share is None else f"{share:.0%}",
    ]


def precision(rate: float) -> str:
    """One decimal for slow ones."""
    return ",.1f" if rate < 100 else ",.0f"


def shapes_table(results: dict[str, Any]) -> Iterator[str]:
    """Median images/s, a row for each contender and a column for each batch and size."""
    columns = [(device, shape) for device in DEVICE if device in results for shape in results[device]["shapes"]]
    yield "| median images/s |" + "".join(f" {where(*column)} |" for column in columns)
    yield "|---" + "|---:" * len(columns) + "|"
    for name in dict.fromkeys(name for _, shape in columns for name in shape["contenders"]):
        found = [shape["contenders"].get(name) for _, shape in columns]
        medians = [each["images_per_s"]["median"] if each else None for each in found]
        cells = ("-" if median is None else format(median, precision(median)) for median in medians)
        yield f"| {name} | " + " | ".join(cells) + " |"


def verdicts(device: str, part: dict[str, Any]) -> Iterator[tuple[Shape, str]]:
    """Each target beside its figure; those whose contenders were not measured are left out.

    Memory and a CPU's speed are judged on the headline shape, a GPU's speed at every batch of its size.
    """
    main = headline(part, device)
    for shape in part["shapes"]:
        if shape is main or (device == "gpu" and shape["size"] == main["size"]):
            yield from ((shape, line) for line in speed_verdicts(device, shape))
    yield from ((main, line) for mode, target in MEMORY.items() for line in memory_verdicts(main, mode, target))


def speed_verdicts(device: str, shape: Shape) -> Iterator[str]:
    """Our fastest beside the faster rival, round by round; ours that recomputes beside ours that does not."""
    rounds = {name: figures["rounds"] for name, figures in shape["contenders"].items()}
    ours = {name: rates for name, rates in rounds.items() if name.startswith("ours") and name != TRAINS_LESS}
    for variant, target in SPEED[device].items():
        theirs = {name: rounds[name] for rival in RIVALS if (name := f"{rival}, {variant}") in rounds}
        if ours and theirs:
            times = ratio(ours[best(ours)], theirs[best(theirs)]).median
            yield f"speed of {best(ours)} to {best(theirs)}: {verdict(times, target, 'x')}"
    if "ours, off" in ours and "ours, activations" in ours:
        times = ratio(ours["ours, activations"], ours["ours, off"]).median
        yield f"speed of ours, activations to ours, off: {verdict(times, ACTIVATIONS_SPEED, 'x')}"
    if device == "gpu" and ours and shape["batch"] == HEADLINE["gpu"]:
        yield f"speed of {best(ours)}: {verdict(statistics.median(ours[best(ours)]), LARGE_BATCH_RATE, ' images/s')}"


def memory_verdicts(shape: Shape, mode: str, target: float) -> Iterator[str]:
    """What is kept and the peak, in percent of torchvision's at its best settings."""
    ours, theirs = (shape["contenders"].get(name) for name in (f"ours, {mode}", "torchvision, best"))
    if ours and theirs:
        for quantity, key in (("kept for backward", "kept_bytes"), ("peak memory", "peak_bytes")):
            share = verdict(100 * ours[key] / theirs[key], target, "%", most=True)
            yield f"{quantity} of ours, {mode} to torchvision, best: {share}"

"""Memory of a training step as predicted before it and as measured: ``python -m benchmarks.memory --help``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import Process
from benchmarks.timing import machine, verdict

RESULTS = Path(__file__).parent / "results" / "memory.json"
STEPS = 6
MODES = ("off", "activations", "blocks")
BATCHES = {"cpu": (8, 16, 32, 64), "gpu": (32, 64, 128, 256, 512)}
SIZES = (96, 128, 224)
ERROR = 15  # percent


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each cell of the grid and write the JSON file."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Memory: predicted and measured.")
    of.add_argument("--device", choices=tuple(BATCHES), default="cpu")
    of.add_argument("--batch", type=int, nargs="+", help="images a step (default 8 to 64, or to 512 on a GPU)")
    of.add_argument("--size", type=int, nargs="+", default=SIZES, help="pixels a side")
    of.add_argument("--model", default="efficientnet_b0", help="as model.name")
    of.add_argument("--frozen", action="store_true", help="BatchNorm and first layers, as when weights were loaded")
    of.add_argument("--output", type=Path, default=RESULTS)
    options = of.parse_args(arguments)
    grid = [
        (batch, size, mode)
        for size in options.size
        for batch in options.batch or BATCHES[options.device]
        for mode in (MODES if options.model.startswith("efficientnet") else MODES[:1])
    ]
    cells = []
    print("batch  px   mode         predicted   measured   error")
    for batch, size, mode in grid:
        cells.append(measured_cell(options.device, batch, size, mode, options.model, options.frozen))
        print(line(cells[-1]), flush=True)
    worst = max(abs(cell["error_percent"]) for cell in cells)
    print("largest error:", verdict(worst, ERROR, "%", most=True))
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    kind = " frozen" if options.frozen else ""
    usual = options.model == "efficientnet_b0" and not options.frozen
    results[options.device if usual else f"{options.device}, {options.model}{kind}"] = {
        "machine": machine(),
        "steps": STEPS,
        "cells": cells,
    }
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def line(cell: dict[str, Any]) -> str:
    """Of the table on the screen."""
    predicted, found = (f"{cell[key] / 1e9:7.3f} GB" for key in ("predicted_bytes", "measured_bytes"))
    return f"{cell['batch']:5} {cell['size']:4}  {cell['mode']:11} {predicted} {found} {cell['error_percent']:+6.1f}%"


def measured_cell(device: str, batch: int, size: int, mode: str, name: str, frozen: bool) -> dict[str, Any]:
    """Each in a process of its own."""
    process = Process()
    try:
        predicted = process.call(predict, device, batch, size, mode, name, frozen)
    finally:
        process.close()
    process = Process()
    try:
        found = process.call(measure, device, batch, size, mode, name, frozen)
    finally:
        process.close()
    error = 100 * (predicted / found - 1)
    cell = {"batch": batch, "size": size, "mode": mode, "predicted_bytes": predicted, "measured_bytes": found}
    return cell | {"error_percent": round(error, 2)}


def predict(device: str, batch: int, size: int, mode: str, name: str, frozen: bool) -> int:
    """What a run would say."""
    from benchmarks.step_contenders import hold_as_loaded
    from effnet_lit.training.memory import step_peak, with_overhead

    where, precision = ("cuda", "bf16-mixed") if device == "gpu" else ("cpu", "32-true")
    model = network(mode, name)
    if frozen:
        hold_as_loaded(model)
    return with_overhead(step_peak(model, batch, size, where, precision, frozen), where, mode, name, frozen)


def network(mode: str, name: str) -> Any:
    """For ten classes."""
    from effnet_lit.model.zoo import create_model, set_gradient_checkpointing

    result = create_model(name, 10)
    set_gradient_checkpointing(result, mode)
    return result


def measure(device: str, batch: int, size: int, mode: str, name: str, frozen: bool) -> int:
    """The most that training steps took: anonymous memory above the idle process, or what PyTorch reserved of a GPU.

    The weight average and the images that wait for augmentation are there as in a run.
    """
    import copy

    import torch
    from torch.nn import functional

    from benchmarks.many import anonymous_bytes, peak
    from benchmarks.step_contenders import hold_as_loaded
    from effnet_lit.allocator import keep_freed_memory

    if device == "cpu":
        keep_freed_memory()
    where = torch.device("cuda" if device == "gpu" else "cpu")
    import effnet_lit.model.efficientnet

    assert effnet_lit.model.efficientnet
    idle = anonymous_bytes() if device == "cpu" else 0
    model = network(mode, name).train().to(where).to(memory_format=torch.channels_last)
    if frozen:
        hold_as_loaded(model)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    varied = torch.randn(batch, 3, size, size, device=where)
    labels = torch.randint(10, (batch,), device=where)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            images = ((varied - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
            with torch.autocast(where.type, torch.bfloat16, enabled=device == "gpu"):
                logits = model(images)
            functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

    if device == "gpu":
        steps()
        return torch.cuda.max_memory_reserved()
    with peak() as most:
        steps()
    assert len(list(average.parameters()))
    return most[0] - idle


if __name__ == "__main__":
    main()

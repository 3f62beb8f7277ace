"""How fast and how large a training step is, beside torchvision's and timm's: ``python -m benchmarks.step --help``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.contenders import Process, why_not
from benchmarks.step_table import ceiling, step_table
from benchmarks.timing import interleave, machine, processor, spread

if TYPE_CHECKING:
    from benchmarks.step_contenders import Contender, Costs

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "step.json"
README = HERE / "README.md"
PLOT = HERE.parent / "docs" / "images" / "step.png"
START, END = "<!-- step table -->", "<!-- /step table -->"
STEPS = {"cpu": 3, "gpu": 20}  # timed together
ONLY = ("ours", "torchvision", "timm", "others")

Say = Callable[[str], object]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parser().parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if not (options.table or options.write_readme or options.plot):
        measure_and_save(options, console)
        return
    results = load(options.output)
    if options.table:
        print(step_table(results))
    if options.write_readme:
        write_readme(README, step_table(results))
    if options.plot:
        from benchmarks.step_plot import plot_step

        plot_step(results, PLOT)


def parser() -> argparse.ArgumentParser:
    """Options."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.step", description="Speed and memory of a training step.")
    of.add_argument("--device", choices=tuple(STEPS), default="cpu", help="cpu (default) or gpu")
    of.add_argument("--batch", type=positive, nargs="+", default=[32], help="images a step (default 32)")
    of.add_argument("--size", type=positive, nargs="+", default=[224], help="pixels a side (default 224)")
    of.add_argument("--rounds", type=positive, default=5, help="repeats of everything, interleaved (default 5)")
    of.add_argument("--steps", type=positive, help="timed together in a round (default 3 on a CPU, 20 on a GPU)")
    of.add_argument("--only", nargs="+", default=ONLY, help=f"whom to measure: {', '.join(ONLY)}, or a row's name")
    of.add_argument("--add", action="store_true", help="keep the batches and sizes of this device measured before")
    of.add_argument("--output", type=Path, default=RESULTS, help="JSON file (default benchmarks/results/step.json)")
    of.add_argument("--table", action="store_true", help="print the JSON file as Markdown; measure nothing")
    of.add_argument("--write-readme", action="store_true", help="put that table into benchmarks/README.md")
    of.add_argument("--plot", action="store_true", help="draw the JSON file as docs/images/step.png")
    return of


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} measures nothing; give 1 or more")
    return number


def load(file: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def measure_and_save(options: argparse.Namespace, console: Console) -> None:
    """Every batch and size; the file is written after each, its other device's part stays."""
    device, begin, here = options.device, time.perf_counter(), machine()
    name = device_name(device)
    if not name:
        parser().error("--device gpu: PyTorch sees no CUDA GPU here; use --device cpu")
    refuse_unknown(options.only, device)
    shapes = load(options.output).get(device, {}).get("shapes", []) if options.add else []
    steps = options.steps or STEPS[device]
    for size in options.size:
        for batch in options.batch:
            shape = measure_shape(device, batch, size, options.rounds, steps, options.only, console.log)
            shapes = merged(shapes, shape)
            minutes = round((time.perf_counter() - begin) / 60, 1)
            save(options.output, device, {"machine": here, "device": name, "minutes": minutes, "shapes": shapes})
    results = load(options.output)
    print(step_table({device: results[device]}))
    console.print(f"written to {options.output}")


def refuse_unknown(only: Sequence[str], device: str) -> None:
    """End with a message where ``--only`` names no row and no group of rows."""
    from benchmarks.step_contenders import contenders

    rows = [contender.name for contender in contenders(device)]
    for name in only:
        if name not in (*ONLY, *rows):
            parser().error(f"--only {name!r}: use one of: {', '.join(ONLY)}; or a row: {'; '.join(rows)}")


def device_name(device: str) -> str:
    """Processor or GPU; empty where there is none."""
    if device == "cpu":
        return processor()
    from benchmarks.step_contenders import accelerator

    return once(accelerator)


def once(task: Callable[..., Any], *arguments: Any) -> Any:
    """The task's answer, from a process that ends with it."""
    process = Process()
    try:
        return process.call(task, *arguments)
    finally:
        process.close()


def measure_shape(
    device: str, batch: int, size: int, rounds: int, steps: int, only: Sequence[str], say: Say
) -> dict[str, Any]:
    """All contenders on one batch and image size, each in a fresh process; one at a time computes."""
    from benchmarks.step_contenders import contenders, copy_rate, turn

    say(f"{device}, batch {batch}, {size} px")
    bytes_per_s = once(copy_rate, device)
    chosen = {each: Process() for each in contenders(device) if each.name in only or group(each) in only}
    try:
        costs, absent = build_all(chosen, device, batch, size, say)
        say(f"{len(costs)} contenders, {rounds} rounds of {steps} steps")
        tasks = {contender.name: partial(chosen[contender].call, turn, steps) for contender in costs}
        samples = interleave(tasks, rounds)
    finally:
        for process in chosen.values():
            process.close()
    most = ceiling(bytes_per_s, size, device)
    measured = {
        contender.name: figures(samples[contender.name], cost, most, contender) for contender, cost in costs.items()
    }
    how = {"batch": batch, "size": size, "steps_a_round": steps, "copy_bytes_per_s": round(bytes_per_s)}
    return how | {"contenders": measured, "absent": absent}


def group(contender: Contender) -> str:
    """Its name on the command line."""
    return contender.name.partition(",")[0] if "," in contender.name else "others"


def build_all(
    chosen: Mapping[Contender, Process], device: str, batch: int, size: int, say: Say
) -> tuple[dict[Contender, Costs], dict[str, str]]:
    """(what each needs, why others cannot be measured). Imports and compilers run side by side, the rest in turn."""
    from benchmarks.step_contenders import build, prepare

    def imported(contender: Contender) -> str:
        reason = chosen[contender].call(why_not, contender.package)  # before torch: ours tells its threads how to wait
        if not reason:
            chosen[contender].call(prepare, contender, device)
        return reason

    def built(contender: Contender) -> Costs | str:
        try:
            return chosen[contender].call(build, contender, device, batch, size)
        except RuntimeError as error:  # out of memory above all, which may also end the process
            chosen[contender].close()
            return f"failed: {error}"

    with ThreadPoolExecutor(max(1, len(chosen))) as together:
        reasons = dict(zip(chosen, together.map(imported, chosen), strict=True))
        able = [contender for contender, reason in reasons.items() if not reason]
        compiled = [contender for contender in able if contender.compiled]
        answers = dict(zip(compiled, together.map(built, compiled), strict=True))
    for contender in able:
        if contender not in answers:
            say(f"warming up {contender.name}")
            answers[contender] = built(contender)
    ready = {contender: answer for contender in able if not isinstance(answer := answers[contender], str)}
    absent = {c.name: text for c in chosen if isinstance(text := reasons[c] or answers[c], str)}
    for name, reason in absent.items():
        say(f"{name}: {reason}")
    return ready, absent


def figures(rates: Sequence[float], costs: Costs, most: float, contender: Contender) -> dict[str, Any]:
    """Of one contender, as they stand in the file; the ceiling is EfficientNet-B0's, all of it trained."""
    whole = contender.model == "efficientnet_b0" and not contender.fine_tuning
    return {
        "images_per_s": spread(rates)._asdict(),
        "rounds": list(rates),
        "share_of_ceiling": spread(rates).median / most if whole else None,
        "settings": "best" if contender.best else "defaults",
        **costs._asdict(),
    }


def merged(shapes: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """With ``new`` in place of the same batch and size, larger images first, then smaller batches first."""
    others = [shape for shape in shapes if (shape["batch"], shape["size"]) != (new["batch"], new["size"])]
    return sorted([*others, new], key=lambda shape: (-shape["size"], shape["batch"]))


def save(file: Path, device: str, part: dict[str, Any]) -> None:
    """Write one device's part, keeping the other's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(load(file) | {device: part}, indent=2) + "\n", encoding="utf-8")


def between_marks(text: str, table: str) -> str:
    """``text`` with the table between the marks."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    assert rest and after, f"{START} ... {END} is missing"
    return f"{before}{START}\n{table}\n{END}{after}"


def write_readme(file: Path, table: str) -> None:
    """Put the table between the file's marks."""
    file.write_text(between_marks(file.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()

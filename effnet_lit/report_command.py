"""`effnet report`: rebuild the page of a run, or compare runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from effnet_lit.config import UserError, knobs, value_of
from effnet_lit.data.prepare import pixels_of, prepare
from effnet_lit.evaluation.compare import compare
from effnet_lit.evaluation.evidence import read_config
from effnet_lit.evaluation.report import read_answers, read_json, write_report
from effnet_lit.model.modelfile import load_model


def report(runs: Sequence[Path]) -> None:
    """Write report.html and report.md of each run; with several, also say which is better.

    Raises:
        UserError: a folder holds no finished run.
    """
    for run in runs:
        read_json(run / "result.json")
    for run in runs:
        print(f"Open     {write_report(run, load_model(run / 'model.safetensors'), images_of(run))}")
    if len(runs) > 1:
        print_comparison(runs)


def images_of(run: Path) -> Callable[[str], np.ndarray | None]:
    """The run's images as they are now; none where their folder is gone."""
    config = read_config(run)
    assert isinstance(config.data.eval_size, int)
    try:
        data = prepare(config.data, config.seed, False, config.data.eval_size, lambda done, total: None)
    except UserError as error:
        print(f"Note     the images cannot be shown: {error}")
        return lambda path: None
    return pixels_of(data)


def print_comparison(runs: Sequence[Path]) -> None:
    """The runs side by side, then every two on the images that both held out."""
    Console(highlight=False).print(side_by_side(runs))
    answers = []
    for run in runs:
        names = read_json(run / "result.json")["class_names"]
        found = read_answers(run / "test_predictions.csv", names)
        answers.append([one._replace(label=names[one.label], answer=names[one.answer]) for one in found])  # type: ignore[arg-type]
    for (i, first), (j, second) in combinations(enumerate(answers), 2):
        print(compare(first, second).sentence((runs[i].resolve().name, runs[j].resolve().name)))


def side_by_side(runs: Sequence[Path]) -> Table:
    """A column a run: its figures, and the settings that are not the same in all."""
    table = Table("", *(escape(run.resolve().name) for run in runs))
    results = [read_json(run / "result.json") for run in runs]
    for title, told in FIGURES.items():
        table.add_row(title, *map(told, results))
    configs = [read_config(run) for run in runs]
    for key, _, _ in knobs():
        values = [str(value_of(config, key)) for config in configs]
        if len(set(values)) > 1 and key != "name":
            table.add_row(key, *map(escape, values))
    return table


def accuracy(result: dict[str, Any]) -> str:
    """Share right with its 95% interval."""
    low, high = result["test"]["accuracy_ci95"]
    return f"{result['test']['accuracy']:.1%} ({low:.1%} to {high:.1%})"


FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "right, held out (95%)": accuracy,
    "macro F1": lambda result: f"{result['test']['f1_macro']:.3f}",
    "calibration error": lambda result: f"{result['calibration']['test_error']:.1%}",
    "images to train on": lambda result: f"{result['images']['train']:,}",
    "time, in all": lambda result: "{}:{:02} min".format(*divmod(round(result["seconds"]), 60)),
    "peak memory": lambda result: f"{(result['peak_memory_bytes'] or 0) / 1e9:.1f} GB",
}

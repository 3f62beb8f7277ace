"""`effnet report`: rebuild the page of a run, or compare runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import yaml

from effnet_lit.config import UserError, from_dict
from effnet_lit.data.prepare import pixels_of, prepare
from effnet_lit.evaluation.compare import compare
from effnet_lit.evaluation.metrics import wilson_interval
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
    config = from_dict(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    assert isinstance(config.data.eval_size, int)
    try:
        data = prepare(config.data, config.seed, False, config.data.eval_size, lambda done, total: None)
    except UserError as error:
        print(f"Note     the images cannot be shown: {error}")
        return lambda path: None
    return pixels_of(data)


def print_comparison(runs: Sequence[Path]) -> None:
    """Accuracy of each with its interval, then every two on the images that both held out."""
    answers = []
    for run in runs:
        found = read_answers(run / "test_predictions.csv", read_json(run / "result.json")["class_names"])
        right = sum(one.answer == one.label for one in found)
        low, high = wilson_interval(right, len(found))
        print(f"{run.name}: {right / len(found):.1%} of {len(found):,} (95% interval {low:.1%} to {high:.1%})")
        names = read_json(run / "result.json")["class_names"]
        answers.append([one._replace(label=names[one.label], answer=names[one.answer]) for one in found])  # type: ignore[arg-type]
    for (i, first), (j, second) in combinations(enumerate(answers), 2):
        print(compare(first, second).sentence((runs[i].name, runs[j].name)))

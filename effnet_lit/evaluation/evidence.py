"""What a run folder tells of its training: settings, figures and epochs, with their intervals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from effnet_lit.commands import going_on
from effnet_lit.config import Config, UserError, from_dict
from effnet_lit.evaluation.metrics import wilson_interval

Share = tuple[float, float, float]  # value, and its 95% interval


@dataclass(frozen=True)
class Evidence:
    """What a run folder says: its settings, figures and epochs."""

    config: Config
    result: Mapping[str, Any]
    epochs: Sequence[Mapping[str, float]]

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.result["class_names"])

    @property
    def train(self) -> Share:
        """Accuracy on a sample of the training images, as held-out ones are seen."""
        sample = self.result["training_sample"]
        return (sample["accuracy"], *wilson_interval(sample["right"], sample["images"]))

    @property
    def test(self) -> Share:
        """Accuracy on held-out images."""
        return (self.result["test"]["accuracy"], *self.result["test"]["accuracy_ci95"])

    @property
    def fitted(self) -> Share:
        """Accuracy on training images as a share of what always answering the most frequent class leaves."""
        base = self.result["baseline_accuracy"]
        value, low, high = ((one - base) / max(1e-9, 1 - base) for one in self.train)
        return value, low, high

    @property
    def gap(self) -> Share:
        """Training minus held-out accuracy (Newcombe 1998, method 10)."""
        (a, a_low, a_high), (b, b_low, b_high) = self.train, self.test
        low, high = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
        return a - b, a - b - low, a - b + high

    @property
    def steps(self) -> int:
        """Of the optimiser."""
        assert isinstance(self.config.batch_size, int)
        return max(1, self.result["images"]["train"] // self.config.batch_size) * len(self.epochs)


def read_config(run_dir: Path) -> Config:
    """The settings of a run; FileNotFoundError passes through."""
    return from_dict(yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))


def read_evidence(run_dir: Path) -> Evidence:
    """What a finished run left behind.

    Raises:
        UserError: the folder holds no finished run, or one of an older version.
    """
    try:
        result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
        config = read_config(run_dir)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        if (run_dir / "config.yaml").is_file():
            raise UserError(f"{run_dir} has no {name}: its run did not end; go on with: {going_on(run_dir)}") from error
        raise UserError(f"{run_dir} has no {name}, so it is not a run; give a folder under runs/.") from error
    if "training_sample" not in result:
        raise UserError(f"{run_dir} was trained by an older version, which kept too little evidence; train again.")
    epochs = []
    if (run_dir / "metrics.csv").is_file():
        with open(run_dir / "metrics.csv", newline="", encoding="utf-8") as file:
            epochs = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return Evidence(config, result, epochs)

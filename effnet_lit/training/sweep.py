"""The table at the end of a sweep."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from effnet_lit.training.result import Result


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its overrides, and its result or why there is none."""

    overrides: list[str]
    result: Result | None
    error: str


def print_table(jobs: list[Job]) -> None:
    """Finished runs by validation accuracy, best first (the test part ranks nothing); failed ones at the end."""
    finished = sorted((job for job in jobs if job.result), key=lambda job: -accuracy(job))
    table = Table("run", "settings", "val accuracy", "test accuracy", "95% interval", "seconds", "model")
    for rank, job in enumerate(finished, start=1):
        assert job.result is not None
        result = job.result
        low, high = result.test["accuracy_ci95"]
        table.add_row(
            str(rank),
            " ".join(job.overrides),
            f"{result.val_accuracy:.1%}",
            f"{result.test['accuracy']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{result.seconds:.0f}",
            str(result.model_path),
        )
    for job in jobs:
        if job.result is None:
            table.add_row("-", " ".join(job.overrides), "failed", job.error, "", "", "")
    Console().print(table)


def accuracy(job: Job) -> float:
    """Validation accuracy of a finished job."""
    assert job.result is not None
    return job.result.val_accuracy

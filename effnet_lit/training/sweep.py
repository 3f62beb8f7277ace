"""The table at the end of a sweep."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from effnet_lit.training.console import shown
from effnet_lit.training.result import Result, point_latest

WIDTH_WITHOUT_SCREEN = 160


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its overrides, and its result or why there is none."""

    overrides: list[str]
    result: Result | None
    error: str


def conclude_sweep(jobs: list[Job]) -> None:
    """Print finished runs by validation accuracy, best first (the test part ranks nothing), failed ones at the end;
    ``latest`` beside the sweep's folder is the best."""
    screen = Console()
    console = screen if screen.is_terminal else Console(width=WIDTH_WITHOUT_SCREEN)
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    table = Table("", "settings", "val", "test", "95% interval", "seconds", "run")
    finished = [(job, job.result) for job in jobs if job.result is not None]
    finished.sort(key=lambda pair: -pair[1].val_accuracy)
    for rank, (job, result) in enumerate(finished, start=1):
        low, high = result.test["accuracy_ci95"]
        table.add_row(
            str(rank),
            escape(differing(job, common)),
            f"{result.val_accuracy:.1%}",
            f"{result.test['accuracy']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{result.seconds:.0f}",
            escape(str(shown(result.run_dir))),
        )
    failed = [job for job in jobs if job.result is None]
    for job in failed:
        table.add_row("-", escape(differing(job, common)), "failed")
    console.print(table)
    for job in failed:
        console.print(f"failed: {differing(job, common)}: {job.error}", soft_wrap=True, highlight=False, markup=False)
    if finished:
        best = finished[0][1].run_dir
        point_latest(best, best.parent.parent)


def differing(job: Job, common: set[str]) -> str:
    """The overrides that tell a job from the others."""
    return " ".join(override for override in job.overrides if override not in common)

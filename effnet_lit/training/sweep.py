"""The end of a sweep: a table, a plot, and whether the best setting is better by more than chance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from effnet_lit.evaluation.metrics import wilson_interval
from effnet_lit.evaluation.plots import plot_settings
from effnet_lit.evaluation.report import write_page
from effnet_lit.training.console import shown
from effnet_lit.training.result import Result, point_latest

WIDTH_WITHOUT_SCREEN = 160
CHEAPER = 0.67  # of the time for an image; timings of one network on a shared machine differ by less


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its overrides, and its result or why there is none."""

    overrides: list[str]
    result: Result | None
    error: str


def conclude_sweep(jobs: list[Job]) -> None:
    """Print finished runs by validation accuracy, best first (the test part ranks nothing), failed ones at the end;
    draw sweep.png; ``latest`` beside the sweep's folder is the best."""
    screen = Console()
    console = screen if screen.is_terminal else Console(width=WIDTH_WITHOUT_SCREEN)
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    runs = [(differing(job, common), job.result) for job in jobs if job.result is not None]
    runs.sort(key=lambda run: -run[1].val_accuracy)
    failed = [(differing(job, common), job.error) for job in jobs if job.result is None]
    console.print(table_of(runs, [name for name, _ in failed]))
    mistakes = by_error(failed)
    for names, error in mistakes:
        say(f"failed: {names}: {error}")
    if runs:
        best = runs[0][1]
        point_latest(best.run_dir, best.run_dir.parent.parent)
        settings = by_setting(runs)
        sentence = of_folds(runs) or verdict(settings, best.val_baseline)
        say(f"Verdict  {sentence}")
        page, plot = draw(best.run_dir.parent, sentence, settings, runs, mistakes)
        say(f"Open     {shown(page)}; as a picture: {plot.name}")


def table_of(runs: Sequence[tuple[str, Result]], failed: Sequence[str]) -> Table:
    """A row a run, in order, then those that failed."""
    table = Table("", "settings", "val", "test", "95% interval", "MB", "ms an image", "seconds", "run")
    for rank, (name, result) in enumerate(runs, start=1):
        low, high = result.test["accuracy_ci95"]
        table.add_row(
            str(rank),
            escape(name),
            f"{result.val_accuracy:.1%}",
            f"{result.test['accuracy']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{result.model_bytes / 1e6:.1f}",
            f"{1e3 * result.image_seconds:.1f}",
            f"{result.seconds:.0f}",
            escape(str(shown(result.run_dir))),
        )
    for name in failed:
        table.add_row("-", escape(name), "failed")
    return table


def draw(
    folder: Path,
    sentence: str,
    settings: Sequence[Setting],
    runs: Sequence[tuple[str, Result]],
    failed: Sequence[tuple[str, str]],
) -> tuple[Path, Path]:
    """sweep.html and sweep.png in the sweep's folder."""
    plot = folder / "sweep.png"
    plot_settings([s.name for s in settings], [s.accuracy for s in settings], [s.interval for s in settings], plot)
    headline, _, rest = sentence.removesuffix(".").partition("; ")
    facts = {
        "folder": folder.name,
        "headline": headline[0].upper() + headline[1:],
        "rest": f"{rest}." if rest else "",
        "settings": settings,
        "runs": runs,
        "failed": failed,
    }
    return write_page(folder / "sweep.html", facts), plot


class Setting(NamedTuple):
    """What all seeds and folds of one setting got right together."""

    name: str
    right: int
    images: int
    megabytes: float = 0.0
    milliseconds: float = 0.0  # of one CPU core, for an image

    @property
    def accuracy(self) -> float:
        """Share of the validation images."""
        return self.right / max(1, self.images)

    @property
    def interval(self) -> tuple[float, float]:
        """95%."""
        return wilson_interval(self.right, self.images)


def by_setting(runs: Sequence[tuple[str, Result]]) -> list[Setting]:
    """Runs that differ in nothing but seed and fold taken together, best first."""
    found: dict[str, Setting] = {}
    for name, result in runs:
        name = " ".join(part for part in name.split() if not part.startswith(("seed=", "data.fold="))) or "all"
        before = found.get(name, Setting(name, 0, 0))
        right = round(result.val_accuracy * result.val_images)
        cost = result.model_bytes / 1e6, 1e3 * result.image_seconds
        found[name] = Setting(name, before.right + right, before.images + result.val_images, *cost)
    return sorted(found.values(), key=lambda setting: -setting.accuracy)


def by_error(failed: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names of the jobs that failed for the same reason, and that reason."""
    names: dict[str, list[str]] = {}
    for name, error in failed:
        names.setdefault(error, []).append(name)
    return [(", ".join(told[:3]) + more(told[3:]), error) for error, told in names.items()]


def more(left: Sequence[object]) -> str:
    """The end of a list that names only its first."""
    return f" and {len(left)} more" if left else ""


def of_folds(runs: Sequence[tuple[str, Result]]) -> str:
    """The held-out parts of several folds together; empty where the runs are anything else."""
    folds = [re.fullmatch(r"data\.fold='?\d+/(\d+)'?", name) for name, _ in runs]
    if len(runs) < 2 or not all(folds) or len({fold[1] for fold in folds if fold}) > 1 or len(dict(runs)) < len(runs):
        return ""
    images = sum(result.test["images"] for _, result in runs)
    right = sum(round(result.test["accuracy"] * result.test["images"]) for _, result in runs)
    low, high = wilson_interval(right, images)
    return (
        f"{len(runs)} folds together: {right / images:.1%} right on {images:,} images, each held out once "
        f"(95% interval {low:.1%} to {high:.1%})."
    )


def verdict(settings: Sequence[Setting], baseline: float) -> str:
    """Which setting to take, and whether it leads the next one by more than chance (two proportions, 95%).

    All settings saw the same images, so the test is on the careful side. ``baseline`` is the share that always
    answering the most frequent class gets right.
    """
    best, *others = settings
    if not others:
        return f"one setting, {best.accuracy:.1%} right: nothing to choose."
    low, high = best.interval
    if low <= baseline:
        return (
            f"nothing to choose: the best, {best.name}, is {best.accuracy:.1%} right, and always answering the most "
            f"frequent class {baseline:.1%}. More epochs may help."
        )
    about = f"take {best.name}: {best.accuracy:.1%} right (95% interval {low:.1%} to {high:.1%})"
    ties = [other for other in others if not leads(best, other)]
    if not ties:
        return f"{about}; better than every other by more than chance."
    names = ", ".join(tie.name for tie in ties[:3]) + more(ties[3:])
    told = f"{about}; not better by more than chance than: {names}. More seeds (seed=0,1,2) would tell."
    return told + cheaper(best, ties)


def cheaper(best: Setting, ties: Sequence[Setting]) -> str:
    """The fastest of settings that are as good, where its answers cost clearly less; else empty."""
    tie = min(ties, key=lambda setting: setting.milliseconds)
    if tie.milliseconds > CHEAPER * best.milliseconds or tie.milliseconds == 0:
        return ""
    return (
        f" Of these {tie.name} answers fastest: {tie.milliseconds:.1f} ms an image and {tie.megabytes:.1f} MB "
        f"in place of {best.milliseconds:.1f} and {best.megabytes:.1f}."
    )


def leads(one: Setting, other: Setting) -> bool:
    """Whether the difference is over 1.96 of its standard deviations."""
    variance = sum(s.accuracy * (1 - s.accuracy) / max(1, s.images) for s in (one, other))
    return one.accuracy - other.accuracy > 1.96 * sqrt(variance)


def differing(job: Job, common: set[str]) -> str:
    """The overrides that tell a job from the others."""
    return " ".join(rounded(override) for override in job.overrides if override not in common)


def rounded(override: str) -> str:
    """A number that a search drew, with three digits."""
    key, _, value = override.partition("=")
    return f"{key}={float(value):.3g}" if re.fullmatch(r"\d*\.\d{4,}(e-?\d+)?", value) else override

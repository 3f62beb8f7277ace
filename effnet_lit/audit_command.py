"""`effnet audit`: the audit of a run, without the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from effnet_lit.commands import override, training_on
from effnet_lit.composition import compose
from effnet_lit.config import Config, UserError
from effnet_lit.data.audit import write_audit
from effnet_lit.data.audit_page import write_audit_page
from effnet_lit.data.augment_sheet import write_augment_sheet
from effnet_lit.data.prepare import PreparedData, look, pictures

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
WORST_SHOWN = 2
SHEET_ROWS = 8


def audit_folder(folder: Path, settings: Sequence[str], out: Path | None, sheet: bool) -> None:
    """Audit a folder as a run with these settings would, print the summary, write audit.json and audit.html.

    Raises:
        UserError: the folder cannot be read, the findings cannot be written, or, when they are, nothing can be
            trained on the images.
    """
    out = out or Path("audits") / folder.resolve().name
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} would lie among the images; start from another folder, or give one with --out.")
    config = compose(override("data.dir", folder), *settings, "limits=off")
    console = Console(highlight=False, soft_wrap=False, markup=False)
    data = prepare_shown(config, console)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_audit(out / "audit.json", data.audit)
        write_audit_page(out / "audit.html", data.audit, pictures(data))
        if sheet and not data.obstacle:
            draw_sheet(out / "augmentation.png", config, data)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give another folder with --out.") from error
    summarise(data.audit, console)
    console.print(f"Open     {out / 'audit.html'}", soft_wrap=True)
    if data.obstacle:
        raise UserError(data.obstacle)
    if sheet:
        console.print(f"         {out / 'augmentation.png'}", soft_wrap=True)
    next_command = training_on(folder, data.audit["images"]["used"], settings)
    console.print(f"Next     {next_command}", soft_wrap=True)


def prepare_shown(config: Config, console: Console) -> PreparedData:
    """``look``, with a bar while images are decoded for the first time."""
    columns = (TextColumn("looking at images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    assert isinstance(config.data.eval_size, int)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        update: Any = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
        return look(config.data, config.seed, False, config.data.eval_size, update)


def summarise(audit: dict[str, Any], console: Console) -> None:
    """The findings as a table, each with its worst few files and what to do."""
    images = audit["images"]
    console.print(f"{images['found']:,} images in {len(audit['classes'])} classes, {images['used']:,} can be used.")
    if not audit["findings"]:
        console.print("Nothing to do.")
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for finding in audit["findings"]:
        alike = " ~ " if finding["kind"].startswith("near_") else " = "
        worst = [worst_line(item, alike) for item in finding["items"][:WORST_SHOWN]]
        title = f"{finding['title']}: {finding['count']:,}" if worst else finding["title"]
        style = COLOURS[finding["severity"]] if finding["severity"] != "note" else None
        table.add_row(finding["severity"], "\n".join([title, *worst, finding["next"]]), style=style)
    console.print(table)


def worst_line(item: dict[str, Any], alike: str) -> str:
    """One case of a finding."""
    paths = alike.join(item["paths"][:2])
    return f"{paths} ({item['detail']})" if paths else item["detail"]


def draw_sheet(path: Path, config: Config, data: PreparedData) -> None:
    """Images of as many classes as fit, before and after augmentation."""
    assert isinstance(config.data.image_size, int)
    train = data.part("train")
    _, first = np.unique(data.labels[train], return_index=True)
    chosen = train[first[np.linspace(0, len(first) - 1, min(SHEET_ROWS, len(first))).astype(int)]]
    write_augment_sheet(
        path,
        data.images[data.rows[chosen]],
        [data.paths[i] for i in chosen],
        config.augmentation,
        config.data.image_size,
        config.data.horizontal_flip == "on",
        config.data.rotation == "on",
        config.seed,
    )

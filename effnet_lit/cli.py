"""`effnet`: train, audit, evaluate, predict, try, export, serve, compare, report, doctor, pack, cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from effnet_lit.allocator import keep_freed_memory
from effnet_lit.commands import training_on
from effnet_lit.config import UserError

app = typer.Typer(
    help="Train EfficientNet-B0 on a folder of images, measure it, use it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ModelPath = Annotated[Path, typer.Argument(help="model.safetensors, or the run folder that holds it")]


def for_people(command: Callable[..., None]) -> Callable[..., None]:
    """A user's mistake ends in one sentence and exit code 2."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            print(f"Error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None

    return run


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Train: the same settings as train.py, `effnet train --help` lists them.",
)
def train(context: typer.Context) -> None:
    from effnet_lit.train_command import main

    main(context.args)


@app.command()
@for_people
def audit(
    folder: Annotated[Path, typer.Argument(help="the folder of images, as for data.dir")],
    settings: Annotated[list[str] | None, typer.Argument(help="settings of a run, such as data.image_size=96")] = None,
    out: Annotated[Path | None, typer.Option(help="where to write; otherwise audits/NAME")] = None,
    sheet: Annotated[bool, typer.Option("--augment", help="also draw images before and after augmentation")] = False,
) -> None:
    """Say what is wrong with a folder of images; nothing in it is changed."""
    from effnet_lit.audit_command import audit_folder

    audit_folder(folder, settings or [], out, sheet)


@app.command()
@for_people
def evaluate(
    model: ModelPath,
    folder: Annotated[Path, typer.Argument(help="class folders with images the model has not seen")],
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Measure a model on class folders."""
    from effnet_lit.evaluation.folder import evaluate_folder
    from effnet_lit.model.modelfile import load_model, model_file

    keep_freed_memory()
    figures = evaluate_folder(load_model(model), folder, model_file(model).parent)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    low, high = figures["accuracy_ci95"]
    print(f"accuracy {figures['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%}) on {figures['images']:,} images")
    top5 = f"top-5 {figures['top5_accuracy']:.1%}, " if len(figures["per_class"]) > 5 else ""
    print(f"{top5}macro F1 {figures['f1_macro']:.3f}, loss {figures['loss']:.3f}")
    for name, row in sorted(figures["per_class"].items(), key=lambda item: item[1]["recall"]):
        if row["images"]:
            print(f"  {name:<24} {row['recall']:6.1%} of {row['images']:,} found, precision {row['precision']:.1%}")
    for note in figures["notes"]:
        print(note)


@app.command()
@for_people
def predict(
    model: ModelPath,
    paths: Annotated[list[str], typer.Argument(help="image files, folders of images, or patterns such as '*.jpg'")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="one row a file, one column a class")] = False,
    top: Annotated[int, typer.Option(min=1, help="how many classes a file")] = 3,
    explain: Annotated[Path | None, typer.Option(help="folder for pictures of what spoke for each answer")] = None,
    sets: Annotated[
        float | None,
        typer.Option("--set", help="classes that hold the true one with this chance: 0.8, 0.9, 0.95, 0.99"),
    ] = None,
) -> None:
    """Name what is in images. A file that cannot be read gets its line, the rest go on."""
    if as_json and as_csv:
        raise UserError("--json and --csv exclude each other; give one of them.")
    if as_csv and sets is not None:
        raise UserError("--csv has a column for every class and none for --set; use --json, or neither.")
    from effnet_lit.predict_command import predict_files

    form = "json" if as_json else "csv" if as_csv else "lines"
    if not predict_files(model, paths, form, top, explain, sets):
        raise typer.Exit(1)


@app.command(name="try")
@for_people
def try_page(
    model: ModelPath,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any that is free")] = 0,
    browser: Annotated[bool, typer.Option(help="open the page")] = True,
) -> None:
    """Drop images on a page of this machine and see the answers."""
    from effnet_lit.try_command import try_model

    try_model(model, port, browser)


@app.command()
@for_people
def export(
    model: ModelPath,
    out: Annotated[
        Path | None, typer.Option(help="file or folder to write to; otherwise beside the model file")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="images to compare on; otherwise those that the run held out")
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="weights in 8 bits: a third of the size, no faster")] = False,
) -> None:
    """Write a model as ONNX for apps, edge devices and servers, and compare its answers with predict's."""
    from effnet_lit.export_command import export_model

    export_model(model, out, check, small)


@app.command()
@for_people
def serve(
    model: Annotated[Path, typer.Argument(help="a run folder after `effnet export`, or the .onnx file")],
    host: Annotated[str, typer.Option(help="who may ask: 127.0.0.1 = this machine, 0.0.0.0 = everyone")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any that is free")] = 8000,
    threads: Annotated[int, typer.Option(min=0, help="images at once; 0 = one a core")] = 0,
    megapixels: Annotated[float, typer.Option(min=0.01, help="of the largest image; 50 take 0.8 GB, each")] = 50,
) -> None:
    """Answer over HTTP: POST an image file to /predict."""
    from effnet_lit.serve_command import serve_model

    serve_model(model, host, port, threads, megapixels)


@app.command()
@for_people
def compare(
    model: ModelPath,
    answers: Annotated[Path, typer.Argument(help="CSV file: path and class, or path and a column for every class")],
    images: Annotated[Path | None, typer.Option(help="folder that holds the images, where paths do not say")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to write: images as the app seems to give them")] = None,
) -> None:
    """Say whether an app answers as predict does, and if not, which usual mistake it makes."""
    from effnet_lit.compare_command import compare_answers

    if not compare_answers(model, answers, images, picture):
        raise typer.Exit(1)


@app.command()
@for_people
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders; of several it says which is better")],
) -> None:
    """Rebuild report.html and report.md of runs."""
    from effnet_lit.report_command import report as rebuild

    rebuild(runs)


@app.command()
@for_people
def doctor(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run")],
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Say why a run is slow, weak or too good to be true, and what to type next."""
    from effnet_lit.evaluation.doctor import diagnose
    from effnet_lit.evaluation.evidence import read_evidence

    found = diagnose(read_evidence(run))
    if as_json:
        print(json.dumps([advice._asdict() for advice in found], indent=2, ensure_ascii=False))
        return
    for advice in found:
        print(f"Doctor   {advice.lines()}")
    if not found:
        print("Nothing to tell: no rule has strong evidence.")


@app.command()
@for_people
def pack(
    folder: Annotated[Path, typer.Argument(help="the folder of images, as for data.dir")],
    out: Annotated[Path, typer.Argument(help="a new folder; data.dir may point to it afterwards")],
    manifest: Annotated[Path | None, typer.Option(help="CSV file as for data.manifest")] = None,
    group: Annotated[str | None, typer.Option(help="as for data.group")] = None,
    gigabytes: Annotated[float, typer.Option(min=0.001, help="size of a shard")] = 1.0,
) -> None:
    """Pack many small image files into a few large ones (tar), unchanged."""
    from rich.progress import track  # a second of import is not needed for --help

    from effnet_lit.data.shards import write_shards
    from effnet_lit.data.source import read_images

    index = read_images(folder, manifest, group)
    ticks = iter(track(range(len(index.paths)), "packing", transient=True))
    shards = write_shards(index, out, int(gigabytes * 1e9), lambda done, total: next(ticks, None))
    print(f"{len(index.paths):,} images in {shards:,} shard{'' if shards == 1 else 's'}.")
    print(f"Next     {training_on(out, len(index.paths))}")


@app.command()
@for_people
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="delete every decoded image kept there")] = False,
    folder: Annotated[Path | None, typer.Option(help="the cache folder, if data.cache_dir was set")] = None,
) -> None:
    """Show where decoded images are kept and how large they are; --clear deletes them."""
    from effnet_lit.data.cache import cache_sizes, clear_cache, default_cache_dir

    place = folder or default_cache_dir()
    sizes = cache_sizes(place)
    if clear:
        clear_cache(place)
    for data_dir, size in sizes:
        print(f"{size / 1e9:8.3f} GB  {data_dir}")
    total = f"{sum(size for _, size in sizes) / 1e9:8.3f} GB in {place}{', deleted' if clear else ''}"
    print(total if sizes else f"No decoded images are kept in {place}.")

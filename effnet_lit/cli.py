"""`effnet`: train, audit, evaluate, predict, pack, cache."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effnet_lit.config import UserError

if TYPE_CHECKING:
    from effnet_lit.deploy.predict import Prediction

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
    from effnet_lit.model.modelfile import load_model

    figures = evaluate_folder(load_model(model_file(model)), folder)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    low, high = figures["accuracy_ci95"]
    print(f"accuracy {figures['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%}) on {figures['images']:,} images")
    print(f"top-5 {figures['top5_accuracy']:.1%}, macro F1 {figures['f1_macro']:.3f}, loss {figures['loss']:.3f}")
    for name, row in sorted(figures["per_class"].items(), key=lambda item: item[1]["recall"]):
        if row["images"]:
            print(f"  {name:<24} {row['recall']:6.1%} of {row['images']:,} found, precision {row['precision']:.1%}")
    for note in figures["notes"]:
        print(note)


@app.command()
@for_people
def predict(
    model: ModelPath,
    paths: Annotated[list[str], typer.Argument(help="image files, or folders of images")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="one row a file, one column a class")] = False,
    top: Annotated[int, typer.Option(min=1, help="how many classes a file")] = 3,
) -> None:
    """Name what is in images. A file that cannot be read gets its line, the rest go on."""
    if as_json and as_csv:
        raise UserError("--json and --csv exclude each other; give one of them.")
    from effnet_lit.deploy.predict import find_images
    from effnet_lit.deploy.predict import predict as predict_images
    from effnet_lit.model.modelfile import load_model

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal cannot show
    classifier = load_model(model_file(model))
    names = classifier.header.class_names
    predictions = predict_images(classifier, find_images(paths))
    write = print_json if as_json else print_csv if as_csv else print_lines
    if not write(predictions, names, top):
        raise typer.Exit(1)


def print_json(predictions: Any, names: Sequence[str], top: int) -> bool:
    """One object a line; returns whether every file could be read (as do the two below)."""
    readable = True
    for item in predictions:
        row = {"path": item.path} | ({"error": item.error} if item.error else as_dictionary(item, names, top))
        print(json.dumps(row, ensure_ascii=False), flush=True)
        readable &= not item.error
    return readable


def as_dictionary(item: Prediction, names: Sequence[str], top: int) -> dict[str, Any]:
    """Class, probability and the likeliest few of one prediction."""
    best = item.top(names, top)
    return {
        "class": best[0][0],
        "probability": best[0][1],
        "top": [{"class": name, "probability": probability} for name, probability in best],
    }


def print_csv(predictions: Any, names: Sequence[str], top: int) -> bool:
    """path, class, probability, error, then every class's probability."""
    readable = True
    writer = csv.writer(sys.stdout)
    writer.writerow(["path", "class", "probability", "error", *names])
    for item in predictions:
        if item.error:
            writer.writerow([item.path, "", "", item.error, *[""] * len(names)])
            readable = False
        else:
            name, probability = item.top(names, 1)[0]
            writer.writerow([item.path, name, repr(probability), "", *(repr(float(p)) for p in item.probabilities)])
    return readable


def print_lines(predictions: Any, names: Sequence[str], top: int) -> bool:
    """A line a file for the eye."""
    readable = True
    for item in predictions:
        if item.error:
            print(f"{item.path}: not read, {item.error}")
            readable = False
        else:
            shown = ", ".join(f"{name} {probability:.1%}" for name, probability in item.top(names, top))
            print(f"{item.path}: {shown}")
    return readable


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

    from effnet_lit.composition import override
    from effnet_lit.data.shards import write_shards
    from effnet_lit.data.source import read_images

    index = read_images(folder, manifest, group)
    ticks = iter(track(range(len(index.paths)), "packing", transient=True))
    shards = write_shards(index, out, int(gigabytes * 1e9), lambda done, total: next(ticks, None))
    print(f"{len(index.paths):,} images in {shards:,} shards.")
    print(f"Next     python train.py {shlex.quote(override('data.dir', out))}")


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
    print(f"{sum(size for _, size in sizes) / 1e9:8.3f} GB in {place}{', deleted' if clear else ''}")


def model_file(path: Path) -> Path:
    """The model file itself, where a run folder was given."""
    if not path.is_dir():
        return path
    if not (path / "model.safetensors").is_file():
        raise UserError(f"{path} holds no model.safetensors; if its run was stopped: python train.py resume={path}")
    return path / "model.safetensors"

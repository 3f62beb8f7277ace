"""`effnet export`: a model file for apps, edge devices and servers."""

from __future__ import annotations

import csv
import io
import math
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import track

from effnet_lit.allocator import keep_freed_memory
from effnet_lit.commands import must_be_installed, typed
from effnet_lit.config import UserError
from effnet_lit.data.prepare import cache_dir_of, given_images
from effnet_lit.deploy.predict import find_images
from effnet_lit.evaluation.evidence import read_config
from effnet_lit.model.modelfile import Header, load_model, model_file

if TYPE_CHECKING:
    from effnet_lit.deploy.agreement import Agreement, File

MOST_COMPARED = 500  # photographs; half a minute, of 12 megapixels two
MOST_CHANGED = 0.02  # of the answers, by weights in 8 bits
ROUNDED_BY = 8  # one photograph in eight tells weights in 8 bits what is typical, and is not compared on
NOISE = ((48, 64), (301, 200), (640, 480), (33, 1000))  # heights and widths of images that are made up
USE = """\
Use      session = onnxruntime.InferenceSession({path!r})
         image = np.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
         probabilities, sure, unlike = session.run(None, {{"image": image[None]}})"""


def export_model(model: Path, out: Path | None, check: Path | None, small: bool) -> None:
    """Write the ONNX file, compare its answers with those of ``effnet predict``, and say how to use it.

    Raises:
        UserError: no such model or images, the extra is not installed, the file cannot be written or answers otherwise.
    """
    must_be_installed("Exporting", "export", "onnx", "onnxscript", "onnxruntime")
    from effnet_lit.deploy import agreement, export

    source = model_file(model)
    target = out or source.parent
    if target.is_dir():
        target /= f"{source.stem}-small.onnx" if small else f"{source.stem}.onnx"
    export.must_be_free(target)
    kind, files = compared_on(check, source.parent, small)
    keep_freed_memory()
    classifier, files = load_model(source), spaced(files)
    print("Export   half a minute, with large photographs a few ...", flush=True)
    typical = None
    if small:
        typical, files = divided(files, classifier.header)
    exported = export.to_onnx(classifier, typical)
    console = Console(stderr=True)
    shown = track(files, "comparing", console=console, transient=True, disable=not console.is_terminal)
    found = agreement.compare(classifier, exported, shown, math.inf if small else agreement.LARGEST_ERROR)
    must_agree(found, small)
    export.write_onnx(target, exported)
    left_out = f"; {len(files) - found.images} could not be opened" if len(files) > found.images else ""
    size, classes = classifier.header.eval_size, len(classifier.header.class_names)
    print(
        f"Model    {target} ({target.stat().st_size / 1e6:.1f} MB{', weights in 8 bits' if small else ''})\n"
        f"Input    image: uint8 (N, H, W, 3), upright RGB of any size, resized to {size} x {size} within\n"
        f"Output   probabilities (N, {classes}), sure (N), unlike (N)\n"
        f"Classes  in the metadata, key {export.CLASSES}, as JSON\n"
        f"Checked  {found.sentence(kind)}{left_out}\n"
        f"Speed    {1e3 * agreement.seconds_an_image(exported, size):.1f} ms an image, one thread of this machine"
    )
    print(USE.format(path=str(target)))
    print(f"Serve    {typed('effnet serve', target)}")
    print(f"Compare  {typed('effnet compare', model, 'app.csv')}, once an app has written path,class there")


def compared_on(check: Path | None, run: Path, small: bool) -> tuple[str, list[File]]:
    """What kind of images the export is compared on, and these.

    Raises:
        UserError: there are no photographs, and ``small`` needs them.
    """
    kind, files = ("images", files_of(check)) if check else ("held-out images", held_out(run))
    if small and len(files) < 2:
        raise UserError(
            f"--small rounds by photographs and is checked on others; {len(files)} {kind} are here. Give a folder of "
            "them with --check."
        )
    if files:
        return kind, files
    return "images of noise (no held-out photographs are here; --check takes others)", noise()


def divided(files: list[File], header: Header) -> tuple[list[np.ndarray], list[File]]:
    """An eighth of the photographs, evenly spaced where all can be opened, (S, S, 3), by which weights are rounded, and
    the others, to compare on.

    Raises:
        UserError: none can be opened.
    """
    from effnet_lit.deploy.agreement import readable

    spread = sorted(range(len(files)), key=lambda number: number % ROUNDED_BY != 0)
    wanted = math.ceil(len(files) / ROUNDED_BY)
    typical = list(islice(readable((files[number] for number in spread), header), wanted))
    if not typical:
        raise UserError("Nothing was written: no image to compare on can be opened; give others with --check.")
    used = {name for name, _, _ in typical}
    return [square for _, square, _ in typical], [file for file in files if file[0] not in used]


def must_agree(found: Agreement, small: bool) -> None:
    """Nothing is written on no evidence, nor weights in 8 bits that change answers.

    Raises:
        UserError: that would be so.
    """
    if not found.images:
        raise UserError("Nothing was written: no image to compare on can be opened; give others with --check.")
    allowed = min(max(1, MOST_CHANGED * found.images), found.images - 1)
    if small and found.others_on_squares > allowed:
        raise UserError(
            f"Nothing was written: weights in 8 bits change the class or the doubts of {found.others_on_squares} of "
            f"{found.images} images; leave --small out."
        )


def held_out(run: Path) -> list[File]:
    """The files that a run held out; none where the run or its images are gone."""
    try:
        data = read_config(run).data
        with open(run / "test_predictions.csv", newline="", encoding="utf-8") as file:
            paths = [row["path"] for row in csv.DictReader(file)]
        index = given_images(data, cache_dir_of(data))[0]
    except (OSError, UserError, ValueError, TypeError, yaml.YAMLError):  # also of a damaged config.yaml
        return []
    number = {path: i for i, path in enumerate(index.paths)}
    return [(path, partial(index.read, number[path])) for path in paths if path in number]


def files_of(folder: Path) -> list[File]:
    """The image files of a folder."""
    return [(str(path), path.read_bytes) for path in find_images([str(folder)])]


def spaced(files: list[File]) -> list[File]:
    """At most ``MOST_COMPARED`` of them, evenly spaced."""
    return [files[int(i)] for i in np.linspace(0, len(files) - 1, min(len(files), MOST_COMPARED)).round()]


def noise() -> list[File]:
    """Images for a comparison where there are no photographs."""
    random, files = np.random.default_rng(0), []
    for height, width in NOISE:
        content = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(content, "PNG")
        files.append((f"noise of {width} x {height}", content.getvalue))
    return files

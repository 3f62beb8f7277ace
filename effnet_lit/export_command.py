"""`effnet export`: a model file for apps, edge devices and servers."""

from __future__ import annotations

import csv
import io
import math
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import track

from effnet_lit.config import UserError, from_dict
from effnet_lit.data.cache import default_cache_dir
from effnet_lit.data.prepare import given_images
from effnet_lit.deploy.predict import find_images
from effnet_lit.model.modelfile import load_model, model_file

if TYPE_CHECKING:
    from effnet_lit.deploy.agreement import Agreement, File

MOST_COMPARED = 500  # photographs; half a minute, of 12 megapixels two
MOST_CHANGED = 0.02  # of the answers, by weights in 8 bits
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
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f'Exporting needs {" and ".join(missing)}: pip install "effnet_lit[export]"')
    from effnet_lit.deploy import agreement, export

    source = model_file(model)
    target = out or source.parent
    if target.is_dir():
        target /= "model-small.onnx" if small else "model.onnx"
    export.must_be_free(target)
    kind, files = ("images", files_of(check)) if check else ("held-out images", held_out(source.parent))
    classifier = load_model(source)
    print("Export   half a minute, with large photographs a few ...", flush=True)
    exported = export.to_onnx(classifier, small)
    console = Console(stderr=True)
    shown = track(spaced(files), "comparing", console=console, transient=True, disable=not console.is_terminal)
    found = agreement.compare(classifier, exported, shown, math.inf if small else agreement.LARGEST_ERROR)
    if check and not found.images:
        raise UserError(f"{check} holds no image that can be read; give another with --check.")
    if small:
        must_agree(found)
    elif not found.images:
        kind = "images of noise (no held-out photographs are here; --check takes others)"
        found = agreement.compare(classifier, exported, noise())
    export.write_onnx(target, exported)
    size, classes = classifier.header.eval_size, len(classifier.header.class_names)
    print(
        f"Model    {target} ({target.stat().st_size / 1e6:.1f} MB{', weights in 8 bits' if small else ''})\n"
        f"Input    image: uint8 (N, H, W, 3), upright RGB of any size, resized to {size} x {size} within\n"
        f"Output   probabilities (N, {classes}), sure (N), unlike (N)\n"
        f"Classes  in the metadata, key {export.CLASSES}, as JSON\n"
        f"Checked  {found.sentence(kind)}\n"
        f"Speed    {1e3 * agreement.seconds_an_image(exported, size):.1f} ms an image, one thread of this machine"
    )
    print(USE.format(path=str(target)))


def must_agree(found: Agreement) -> None:
    """Weights in 8 bits are for those whose answers they leave alone.

    Raises:
        UserError: they change too many, or there is no photograph to tell.
    """
    if not found.images:
        raise UserError(
            "Weights in 8 bits are checked on photographs, and the held-out ones are not here; give some with --check."
        )
    changed = found.other_on_squares
    if changed > max(1, MOST_CHANGED * found.images):
        raise UserError(
            f"Nothing was written: weights in 8 bits change the class or the doubts of {changed} of {found.images} "
            "images; leave --small out."
        )


def held_out(run: Path) -> list[File]:
    """The files that a run held out; none where the run or its images are gone."""
    try:
        config = from_dict(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
        with open(run / "test_predictions.csv", newline="", encoding="utf-8") as file:
            paths = [row["path"] for row in csv.DictReader(file)]
        cache_dir = Path(config.data.cache_dir).expanduser() if config.data.cache_dir else default_cache_dir()
        index = given_images(config.data, cache_dir)[0]
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

"""How often ``effnet compare`` names the mistake of an app: ``python -m benchmarks.app_mistakes --help``.

Apps with a known mistake, or several, answer to photographs that a run held out, every third of them stored turned by
EXIF. Others make none, or one that is not on the list: of these nothing should be said.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.accuracy import load
from benchmarks.apps import ANOTHER_MODEL, ONE, OTHER, SEVERAL, App, Mistakes, Told
from benchmarks.timing import machine
from effnet_lit import load_model
from effnet_lit.compare_command import FEWEST_OTHER, MOST_TOLD
from effnet_lit.data.decode import EXIF_ORIENTATION, decode
from effnet_lit.deploy.app_answers import AppAnswer
from effnet_lit.deploy.compare import SAME, Asked, find_cause, mean_apart
from effnet_lit.deploy.mistakes import Preparation, usual_mistakes
from effnet_lit.deploy.predict import answer
from effnet_lit.export_command import held_out
from effnet_lit.model.modelfile import ImageClassifier

RESULTS = Path(__file__).parent / "results" / "app_mistakes.json"
TOLD = ("probabilities", "class and probability", "class")
DIGITS = 4  # after the point, of probabilities that an app writes down
GROUPS = {"one mistake": ONE, "several": SEVERAL, "none on the list": OTHER}
VERDICTS = ("named", "one of 2 or 3", "in part", "undecided", "nothing said", "too little to see", "wrong")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask about every app with every run, then print the table."""
    options = parser().parse_args(arguments)
    results = load(options.output)
    for run in options.runs:
        classifier = load_model(run)
        files = photographs(run, options.images)
        ours = answered(classifier, files)
        rows = []
        apps = [(group, name, app) for group in options.groups for name, app in GROUPS[group].items()]
        for group, name, app in apps:
            if absent(app, classifier):
                continue
            given = probabilities_of(app, classifier, files)
            for told in options.told:
                row = {"group": group, "app": name, "told": told} | verdict(app, classifier, files, ours, given, told)
                rows.append(row)
                print(run.name, row, flush=True)
        results[run.resolve().name] = {"images": len(files), "size": classifier.header.eval_size, "rows": rows} | {
            "machine": machine()
        }
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def parser() -> argparse.ArgumentParser:
    """Options."""
    of = argparse.ArgumentParser(prog="python -m benchmarks.app_mistakes", description="Whether mistakes are named.")
    of.add_argument("runs", type=Path, nargs="*", help="run folders whose images are still there; none = the table")
    of.add_argument("--images", type=int, default=200, help="held-out photographs of each run, at most")
    of.add_argument("--told", nargs="*", choices=TOLD, default=TOLD, help="what the apps tell")
    of.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS), help="kinds of apps")
    of.add_argument("--output", type=Path, default=RESULTS)
    return of


def photographs(run: Path, most: int) -> list[bytes]:
    """Held-out files, evenly spaced; every third is stored on its side, with the turn in EXIF."""
    files = held_out(run)
    chosen = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(most, len(files))).round()]
    return [on_its_side(read()) if i % 3 == 2 else read() for i, (_, read) in enumerate(chosen)]


def on_its_side(content: bytes) -> bytes:
    """As a camera stores it that was held upright."""
    stored, exif = io.BytesIO(), Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    image = Image.open(io.BytesIO(content)).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    image.save(stored, "JPEG", quality=95, exif=exif)
    return stored.getvalue()


def answered(classifier: ImageClassifier, files: Sequence[bytes]) -> np.ndarray:
    """What ``effnet predict`` answers, (N, classes)."""
    size, resize = classifier.header.eval_size, classifier.header.resize
    images = [decode(file, size, resize) for file in files]
    groups = [images[i : i + classifier.batch] for i in range(0, len(images), classifier.batch)]
    return np.stack([given for group in groups for given, _ in answer(classifier, group)])


def absent(app: App, classifier: ImageClassifier) -> bool:
    """Whether a mistake is none with this model."""
    possible = {mistake for way in usual_mistakes(Preparation(), classifier.header) for mistake in way.mistakes}
    return not app.mistakes <= possible | {("order", "other")}


@torch.inference_mode()
def probabilities_of(app: App, classifier: ImageClassifier, files: Sequence[bytes]) -> np.ndarray:
    """What the app answers, (N, classes)."""
    header = classifier.header
    told = Told(
        header.eval_size, header.image_size, np.array(header.mean, np.float32), np.array(header.std, np.float32)
    )
    network = disturbed(classifier.network) if app is ANOTHER_MODEL else classifier.network
    inputs = (torch.from_numpy(np.ascontiguousarray(app.prepare(file, told))).float() for file in files)
    logits = torch.cat([network(one[None].to(memory_format=torch.channels_last)) for one in inputs])
    return app.finish(logits.numpy(), header.calibration["temperature"]).round(DIGITS)


def disturbed(network: torch.nn.Module) -> torch.nn.Module:
    """Other weights: a twentieth of each layer's spread is added as noise."""
    other, noise = deepcopy(network), torch.Generator().manual_seed(0)
    for weights in other.parameters():
        if weights.dim() > 1:
            weights += 0.05 * weights.std() * torch.randn(weights.shape, generator=noise)
    return other


def verdict(
    app: App, classifier: ImageClassifier, files: Sequence[bytes], ours: np.ndarray, given: np.ndarray, told: str
) -> dict[str, Any]:
    """What ``effnet compare`` finds, and whether that is right."""
    asked = [
        Asked(app_answer(probabilities, told), expected, lambda content=file: content)
        for probabilities, expected, file in zip(given, ours, files, strict=True)
    ]
    other, apart = sum(item.other for item in asked), mean_apart(asked)
    found: dict[str, Any] = {"other": other, "apart": round(apart, 4)}
    if (not other and apart < SAME) or (told == "class" and other < FEWEST_OTHER):
        return found | {"verdict": "too little to see"}
    start = time.perf_counter()
    cause = find_cause(classifier, asked, lambda items, doing: items)
    found["seconds"] = round(time.perf_counter() - start, 1)
    if cause is None:
        return found | {"verdict": "nothing said"}
    said = [frozenset(way.mistakes) for way in cause.ways]
    found |= {"said": [sorted(map(list, way)) for way in said], "explained": cause.explained}
    return found | {"verdict": judged(said, frozenset(cause.common), effective(app, files))}


def effective(app: App, files: Sequence[bytes]) -> Mistakes:
    """Its mistakes, without those that change nothing of images that are all square."""
    square = all(len(set(Image.open(io.BytesIO(file)).size)) == 1 for file in files)
    without = {("shape", shape) for shape in ("middle", "pad_114", "pad_black")} if square else set()
    return app.mistakes - without


def judged(said: Sequence[Mistakes], common: Mistakes, planted: Mistakes) -> str:
    """Whether what is told is right."""
    if len(said) > MOST_TOLD:
        if common:
            return "in part" if common <= planted else "wrong"
        return "undecided" if planted in said else "wrong"
    if said[0] == planted:
        return "named" if len(said) == 1 else "one of 2 or 3"
    if planted in said:
        return "one of 2 or 3"
    return "in part" if said[0] and said[0] < planted else "wrong"


def app_answer(probabilities: np.ndarray, told: str) -> AppAnswer:
    """As the app's file tells it."""
    label = int(probabilities.argmax())
    return AppAnswer(
        "",
        label,
        float(probabilities[label]) if told == "class and probability" else None,
        probabilities if told == "probabilities" else None,
    )


def table(results: dict[str, Any]) -> str:
    """How often, by kind of app and what it tells, as Markdown."""
    rows = [row for run in results.values() for row in run["rows"]]
    lines = [f"| app | tells | {' | '.join(VERDICTS)} |", "|---|---|" + "---:|" * len(VERDICTS)]
    for group in GROUPS:
        for told in TOLD:
            kind = [row["verdict"] for row in rows if (row["group"], row["told"]) == (group, told)]
            if kind:
                lines.append(f"| {group} | {told} | {' | '.join(str(kind.count(one)) for one in VERDICTS)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

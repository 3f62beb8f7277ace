"""`effnet compare`: an app's answers beside those of `effnet predict`, and what the app does otherwise."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from effnet_lit.allocator import keep_freed_memory
from effnet_lit.commands import typed
from effnet_lit.config import UserError
from effnet_lit.deploy.app_answers import AppAnswer, read_answers
from effnet_lit.deploy.compare import SAME, Asked, Cause, find_cause, mean_apart
from effnet_lit.deploy.compare_sheet import write_compare_sheet
from effnet_lit.deploy.mistakes import MISTAKES, Preparation, instead
from effnet_lit.deploy.predict import find_images, predict
from effnet_lit.model.modelfile import Header, ImageClassifier, load_model

MOST_COMPARED = 500  # images
FEWEST_OTHER = 10  # images with another class, where an app tells classes only: of fewer, several causes fit by chance
UNKNOWN = """\
Cause    none of the usual mistakes, alone or together, makes this model answer so
Look at  whether the app has this model file, its weights in 32 bits, and the same images, not compressed or filtered"""
UNDECIDED = """\
{what} one of {count} mistakes that these answers do not tell apart; more images would, and every probability"""
OPENING = """\
Cause    none in the app: effnet predict itself opens very large JPEGs at a reduced scale, puts transparent images on
         white, and takes the upper 8 of 16 bits"""
MOST_TOLD = 3  # explanations that fit about equally well
DONE_BY_EXPORT = ("shape", "size", "resample", "layout", "values", "output")  # steps that stand in its file
T = TypeVar("T")


def compare_answers(model: Path, answers: Path, images: Path | None, picture: Path | None) -> bool:
    """Print how an app's answers differ from those of ``effnet predict``, and why; returns whether they are the same.

    Args:
        images: a folder below which the files lie; otherwise paths start here or beside ``answers``.
        picture: a PNG that is written where a cause is found.

    Raises:
        UserError: no such model, file or images, or none that can be read.
    """
    if picture is not None:
        must_be_new(picture)
    keep_freed_memory()
    classifier = load_model(model)
    told = read_answers(answers, classifier.header)
    found = located(told.answers, answers, images)
    asked = ask_ourselves(classifier, found)
    if not asked:
        raise UserError(f"None of the images in {answers} can be read; run effnet predict on one of them to see why.")
    print(f"Images   {counted(len(asked), len(found), len(told.answers))}")
    print(f"Answers  {difference(asked, classifier.header.class_names)}")
    if told.note:
        print(f"Note     {told.note}")
    other = sum(item.other for item in asked)
    if not other and mean_apart(asked) < SAME + told.rounding:
        print("Same     the app answers as effnet predict does")
        return True
    if all(item.app.class_only for item in asked) and other < FEWEST_OTHER:
        print("Cause    not looked for: so few other classes tell too little; let the app write probabilities as well")
        return False
    cause = find_cause(classifier, asked, lambda items, doing: shown(items, len(items), doing))
    print(sentences(cause, classifier.header, model))
    if picture is not None and cause is not None and len(cause.ways) <= MOST_TOLD:
        write_picture(picture, classifier, asked, cause.ways[0])
    return False


def located(told: Sequence[AppAnswer], answers: Path, images: Path | None) -> list[tuple[AppAnswer, Path]]:
    """Each answer with its image's file, where that is found: as its path tells, or below ``images`` by the end of it.

    Raises:
        UserError: none is found, or a path can mean several files.
    """
    below = ends_of(find_images([str(images)])) if images else {}
    found = []
    for answer in told:
        path = answer.path.replace("\\", "/")
        places = below.get(longest_end(path, below), []) if images else [Path(path), answers.parent / path]
        places = [place for place in places if os.path.isfile(place)]  # also of text that can be no path
        if images and len(places) > 1:
            raise UserError(
                f"{answers}: '{answer.path}' can be {places[0]} or {places[1]}; write more of its path, or rename one."
            )
        found += [(answer, places[0])] if places else []
    if not found:
        raise UserError(
            f"None of the {len(told):,} images in {answers} is found, such as '{told[0].path}'; give the folder that "
            "they lie in with --images."
        )
    return found


def ends_of(files: Iterable[Path]) -> dict[str, list[Path]]:
    """The files by every end of their paths: c.jpg, b/c.jpg, a/b/c.jpg."""
    ends = defaultdict[str, list[Path]](list)
    for file in files:
        for start in range(len(file.parts)):
            ends["/".join(file.parts[start:])].append(file)
    return ends


def longest_end(path: str, known: dict[str, list[Path]]) -> str:
    """The longest end of a path that is known; an empty text where none is."""
    parts = path.split("/")
    return next((end for start in range(len(parts)) if (end := "/".join(parts[start:])) in known), "")


def ask_ourselves(classifier: ImageClassifier, found: Sequence[tuple[AppAnswer, Path]]) -> list[Asked]:
    """What ``effnet predict`` answers to as many of the images, evenly spaced, as are compared."""
    chosen = [found[int(i)] for i in np.linspace(0, len(found) - 1, min(len(found), MOST_COMPARED)).round()]
    ours = shown(predict(classifier, [path for _, path in chosen]), len(chosen), "predicting")
    return [
        Asked(answer, item.probabilities, path.read_bytes)
        for (answer, path), item in zip(chosen, ours, strict=True)
        if item.probabilities is not None
    ]


def shown(items: Iterable[T], count: int, doing: str) -> Iterable[T]:
    """With a bar where someone sees it."""
    console = Console(stderr=True)
    return track(items, doing, count, console=console, transient=True, disable=not console.is_terminal)


def counted(compared: int, found: int, told: int) -> str:
    """How many images, and of how many not."""
    not_found = f"; {told - found:,} not found" if told > found else ""
    asked = min(found, MOST_COMPARED)
    unreadable = f"; {asked - compared:,} cannot be read" if compared < asked else ""
    return f"{compared:,} compared{f' of {found:,}' if found > asked else ''}{not_found}{unreadable}"


def difference(asked: Sequence[Asked], class_names: Sequence[str]) -> str:
    """For the screen."""
    other = [item for item in asked if item.other]
    line = "the class of effnet predict on all"
    if other:
        app, ours = class_names[other[0].app.label], class_names[int(other[0].ours.argmax())]
        line = f"another class on {len(other):,} ({len(other) / len(asked):.1%}), such as {other[0].app.path}: "
        line += f"{app}, from effnet predict {ours}"
    return line if asked[0].app.class_only else f"{line}; probabilities {mean_apart(asked):.4f} apart on average"


def must_be_new(picture: Path) -> None:
    """Nothing is written over.

    Raises:
        UserError: the path is taken, or no place for a PNG.
    """
    if picture.suffix.lower() != ".png" or not picture.parent.is_dir():
        raise UserError(f"--picture {picture} is no name for a PNG in a folder that is there; try --picture app.png")
    if picture.exists():
        raise UserError(f"{picture} is there already; give another name with --picture.")


def write_picture(picture: Path, classifier: ImageClassifier, asked: Sequence[Asked], way: Preparation) -> None:
    """Images as the app seems to give them.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_compare_sheet(picture, classifier, asked, way)
    except OSError as error:
        raise UserError(f"{picture} cannot be written ({error.strerror}); give another with --picture.") from error
    print(f"Picture  {picture}")


def sentences(cause: Cause | None, header: Header, model: Path) -> str:
    """For the screen: what was found, and what to do instead."""
    if cause is None:
        return UNKNOWN
    first, *others = cause.ways
    if not first.mistakes:
        return OPENING
    mistakes = dict.fromkeys(mistake for way in cause.ways for mistake in way.mistakes)
    if len(others) < MOST_TOLD:
        lines = [f"Cause    the app {what_it_does(first.mistakes)}"]
        lines += [f"Or       the app {what_it_does(way.mistakes)}" for way in others]
    else:
        lines = [f"Cause    the app {what_it_does(cause.common)}"] if cause.common else []
        lines += [UNDECIDED.format(what="And     " if lines else "Cause   ", count=len(cause.ways))]
        mistakes = mistakes if len({MISTAKES[mistake].instead for mistake in mistakes}) == 1 else cause.common
    lines += [f"Checked  made here, this takes away {cause.explained:.0%} of the difference, on {cause.images} images"]
    lines += [f"Instead  {text}" for text in dict.fromkeys(instead(mistake, header) for mistake in mistakes)]
    if any(step in DONE_BY_EXPORT for step, _ in mistakes):
        lines += [f"Easiest  {typed('effnet export', model)}: its file takes upright RGB of any size and does the rest"]
    return "\n".join(lines)


def what_it_does(mistakes: Iterable[tuple[str, str]]) -> str:
    """In the order of an app's steps."""
    return ", and ".join(MISTAKES[mistake].says for mistake in mistakes)

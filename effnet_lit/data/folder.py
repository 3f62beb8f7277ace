"""Class folders -> an index of image files. Standard library only: it is read before torch is imported.

Two layouts are accepted, and images may lie deeper inside a class folder:

    root/CLASS/*.jpg        and        root/{train,val,test}/CLASS/*.jpg
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from effnet_lit.config import FEWEST_IMAGES, UserError

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "bmp", "gif", "webp", "tif", "tiff", "avif", "heic", "heif", "ppm", "pgm"}
)
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"})
LAYOUT = "one sub-folder of images per class"

Owner = tuple[str | None, str]  # (split, class name)


@dataclass(frozen=True)
class Index:
    """Image files of a data folder, sorted by path. ``labels`` count through ``class_names``, over all splits.

    ``splits`` are "train", "val" or "test" where the folder is divided so, else None. ``ignored`` lists
    (path, reason) of what was passed over; hidden and system files are not worth a line.
    """

    root: Path
    class_names: tuple[str, ...]
    paths: tuple[str, ...]  # relative to root, with forward slashes
    labels: tuple[int, ...]
    splits: tuple[str | None, ...]
    ignored: tuple[tuple[str, str], ...]
    groups: tuple[str | None, ...] = ()  # what keeps images on one side of a split; empty, or one a path

    def read(self, i: int) -> bytes:
        """The content of one file; OSError passes through."""
        return (self.root / self.paths[i]).read_bytes()

    def state(self, i: int) -> tuple[int, int]:
        """(bytes, mtime_ns) of one file, (-1, -1) if it vanished."""
        try:
            status = os.stat(f"{self.root}/{self.paths[i]}")
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    def select(self, chosen: Sequence[int]) -> Index:
        """The index with these images only."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            splits=tuple(self.splits[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen) if self.groups else (),
        )


def read_folder(root: Path) -> Index:
    """Find the images below ``root``. Class names are sorted as plain text; links are followed, each folder once.

    Raises:
        UserError: there is no such folder, it cannot be read, or it holds no images in class folders.
    """
    top = read_top(root)
    owners, stray = class_folders(root, top)
    walk = Walk(root)
    found = sorted(walk.images(owners))
    if not found:
        raise no_images(root, top)
    used = {owner for _, owner in found}
    ignored = [*walk.ignored, *((name, "outside the class folders") for name in stray)]
    ignored += [(path, "class folder without images") for path, owner in owners.items() if owner not in used]
    class_names = sorted({name for _, (_, name) in found})
    label = {name: i for i, name in enumerate(class_names)}
    return Index(
        root,
        tuple(class_names),
        tuple(path for path, _ in found),
        tuple(label[name] for _, (_, name) in found),
        tuple(split for _, (split, _) in found),
        tuple(sorted((as_text(path), reason) for path, reason in ignored)),
    )


def check_size(index: Index, limits: bool) -> None:
    """Raise ``UserError`` where there are too few classes or images to train on; ``limits`` is the card's minimum."""
    if len(index.class_names) < 2:
        (name,) = set(index.class_names)
        inner = sorted({path.split("/")[1] for path in index.paths if path.count("/") > 1})
        wrapped = len(inner) > 1 and (index.root / name).is_dir()
        hint = f"if the classes are inside it, give {index.root / name}" if wrapped else "add images of others"
        raise UserError(f"{index.root} has images of only one class, '{name}'; {hint}.")
    count = len(index.paths)
    if limits and count < FEWEST_IMAGES:
        raise UserError(
            f"{index.root} has {count:,} images and the least advised is {FEWEST_IMAGES}; "
            "add images, or add limits=off to train all the same."
        )
    train = Counter(label for label, split in zip(index.labels, index.splits, strict=True) if split in (None, "train"))
    missing = 3 - len({split for split in index.splits if split})  # parts that must be cut from the training images
    if max(train.values(), default=0) < min(3, missing + 1):
        raise UserError(
            f"{index.root} has {count} images, too few to hold any out; at least one class needs 3 or more."
        )


@dataclass
class Listing:
    """What lies directly in a folder; names sorted, hidden ones left out."""

    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def list_folder(folder: Path) -> Listing:
    """One folder by kind; raises OSError where it cannot be read."""
    listing = Listing()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not is_hidden(entry.name):
            kinds = {"image": listing.images, "folder": listing.folders, "link": listing.folders}
            kinds.get(kind_of(entry), listing.others).append(entry.name)
    return listing


def read_top(root: Path) -> Listing:
    """List ``root`` itself, or raise ``UserError`` with what is wrong with it."""
    if root.is_file():
        unpack = " unpack it and" if root.suffix.lower() in ARCHIVES else ""
        raise UserError(f"{root} is a file;{unpack} give the folder that holds {LAYOUT}.")
    if not root.is_dir():
        raise UserError(f"{root} does not exist; {suggestion(root)}")
    try:
        top = list_folder(root)
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error.strerror}); change its permissions.") from error
    if top == Listing():
        raise UserError(f"{root} is empty; give a folder that holds {LAYOUT}.")
    if top.images and not top.folders:
        raise UserError(
            f"{root} has {len(top.images):,} images but no class folders; "
            f"put each class's images into a sub-folder of its own, such as {root / 'cat'}."
        )
    return top


def suggestion(root: Path) -> str:
    """What the user may have meant by a folder that does not exist."""
    try:
        names = [entry.name for entry in os.scandir(root.parent) if entry.is_dir()]
    except OSError:
        names = []
    close = difflib.get_close_matches(root.name, names, n=1)
    return f"did you mean {root.parent / close[0]}?" if close else f"give a folder that holds {LAYOUT}."


def class_folders(root: Path, top: Listing) -> tuple[dict[str, Owner], list[str]]:
    """Class folders by path relative to root, and the files outside them.

    "train" and the like are splits only where there are several, each with folders inside; else they are classes.
    """
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in top.folders if name.lower() in SPLIT_FOLDERS}
    inside = {name: listing_or_nothing(root / name) for name in splits}
    stray = top.images + top.others
    if len(set(splits.values())) < 2 or not all(listing.folders for listing in inside.values()):
        return {name: (None, name) for name in top.folders}, stray
    others = sorted(set(top.folders) - set(splits))
    if others:
        raise UserError(
            f"{root} has {' and '.join(splits)} folders beside '{others[0]}'; "
            "move the others out, or put all images into class folders without parts."
        )
    if "train" not in splits.values():
        raise UserError(f"{root} has {' and '.join(splits)} folders but no train folder; rename one of them to train.")
    owners: dict[str, Owner] = {}
    for split, listing in inside.items():
        owners |= {f"{split}/{name}": (splits[split], name) for name in listing.folders}
        stray += [f"{split}/{name}" for name in listing.images + listing.others]
    return owners, stray


def listing_or_nothing(folder: Path) -> Listing:
    """An unreadable folder holds nothing; the walk lists it with its reason."""
    try:
        return list_folder(folder)
    except OSError:
        return Listing()


class Walk:
    """One pass over a data folder. Links to folders wait until every real folder is read, so that a link can
    neither hang the walk nor take the images of another class."""

    def __init__(self, root: Path) -> None:
        self.root = os.fspath(root)
        self.ignored: list[tuple[str, str]] = []
        real = Path(os.path.realpath(root))
        self.seen = {str(real), *map(str, real.parents)}  # a link to any of these leads back

    def images(self, owners: dict[str, Owner]) -> list[tuple[str, Owner]]:
        """(path relative to root, owner) of every image in these folders."""
        found: list[tuple[str, Owner]] = []
        folders = [item for item in owners.items() if not os.path.islink(os.path.join(self.root, item[0]))]
        links = [item for item in owners.items() if item not in folders]
        while folders or links:
            folder, owner = folders.pop() if folders else links.pop(0)
            if not self.is_new(folder):
                self.ignored.append((folder, "link to a folder that is read already"))
                continue
            for name, kind in self.entries(folder):
                kinds = {"image": found, "folder": folders, "link": links}
                kinds[kind].append((f"{folder}/{name}", owner))
        return found

    def is_new(self, folder: str) -> bool:
        """Whether a folder is met for the first time, by whatever path."""
        real = os.path.realpath(os.path.join(self.root, folder))
        known = real in self.seen
        self.seen.add(real)
        return not known

    def entries(self, folder: str) -> Iterator[tuple[str, str]]:
        """(name, "image", "folder" or "link" to a folder); everything else is noted as ignored."""
        try:
            entries = sorted(os.scandir(os.path.join(self.root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            self.ignored.append((folder, f"folder cannot be read: {error.strerror}"))
            return
        for entry in entries:
            if is_hidden(entry.name):
                continue
            kind = kind_of(entry)
            if kind == "other":
                inner = f"{folder}/{entry.name}"
                self.ignored.append((inner, self.why_not(inner)))
            else:
                yield entry.name, kind

    def why_not(self, path: str) -> str:
        """Why a file is no image to read."""
        full = os.path.join(self.root, path)
        if not is_text(path):
            return "its name is not valid UTF-8"
        if os.path.islink(full) and not os.path.exists(full):
            return "broken link"
        if is_image_name(path):
            return "not a regular file"
        extension = os.path.splitext(path)[1]
        return f"{extension} is not an image extension" if extension else "no image extension"


def kind_of(entry: os.DirEntry[str]) -> str:
    """One of "image", "folder", "link" (to a folder) and "other"."""
    if not is_text(entry.name):
        return "other"
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
        return "image" if is_image_name(entry.name) and entry.is_file() else "other"
    except OSError:  # a link to itself
        return "other"


def no_images(root: Path, top: Listing) -> UserError:
    """The sentence for a folder in which no image was found."""
    what = f"{len(top.folders)} folders but no images in them" if top.folders else "neither images nor class folders"
    return UserError(f"{root} has {what} (.jpg, .png, .webp and the like); give a folder that holds {LAYOUT}.")


def is_hidden(name: str) -> bool:
    """Whether a name is one that systems leave behind, not a user."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Whether the last extension is an image's, in any case."""
    return os.path.splitext(name)[1].lower().lstrip(".") in IMAGE_EXTENSIONS


def is_text(name: str) -> bool:
    """Whether a file name can be written to a text file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(name: str) -> str:
    """A file name with the bytes that are no UTF-8 replaced."""
    return os.fsencode(name).decode("utf-8", "replace")

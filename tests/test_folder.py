"""From a folder to an index, and a sentence for each way in which a folder can be wrong."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from effnet_lit.config import UserError
from effnet_lit.data.folder import SPLIT_FOLDERS, check_size, read_folder

ROOT = Path(__file__).resolve().parent.parent
links = pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")


def touch(root: Path, *paths: str) -> Path:
    """Empty files; the index does not look into them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_flat_class_folders(tmp_path: Path) -> None:
    index = read_folder(
        touch(tmp_path, "dog/2.jpg", "cat/b/c/1.PNG", "cat/a.jpeg", "Ä b/1.webp", "10/x.tif", "9/x.bmp")
    )
    assert index.class_names == ("10", "9", "cat", "dog", "Ä b")  # plain text order
    assert index.paths == ("10/x.tif", "9/x.bmp", "cat/a.jpeg", "cat/b/c/1.PNG", "dog/2.jpg", "Ä b/1.webp")
    assert index.labels == (0, 1, 2, 2, 3, 4)
    assert set(index.splits) == {None}
    assert index.ignored == ()


def test_label_ids_are_taken_once_over_all_splits(tmp_path: Path) -> None:
    index = read_folder(touch(tmp_path, "train/b/1.jpg", "train/c/1.jpg", "Valid/a/1.jpg", "test/c/deep/1.jpg"))
    assert index.class_names == ("a", "b", "c")
    assert dict(zip(index.paths, zip(index.labels, index.splits, strict=True), strict=True)) == {
        "Valid/a/1.jpg": (0, "val"),
        "train/b/1.jpg": (1, "train"),
        "train/c/1.jpg": (2, "train"),
        "test/c/deep/1.jpg": (2, "test"),
    }


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "VAL"])
def test_names_of_the_validation_part(tmp_path: Path, name: str) -> None:
    index = read_folder(touch(tmp_path, "train/a/1.jpg", f"{name}/a/1.jpg"))
    assert sorted(map(str, index.splits)) == ["train", "val"]


def test_classes_may_be_called_train_or_test(tmp_path: Path) -> None:
    index = read_folder(touch(tmp_path, "train/1.jpg", "test/1.jpg", "car/1.jpg"))
    assert index.class_names == ("car", "test", "train")
    assert set(index.splits) == {None}


def test_what_is_no_image_is_told_and_what_systems_leave_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "a/notes.txt", "a/x.jpg.part", "b/none", "stray.jpg", "readme.md")
    touch(tmp_path, ".hidden/1.jpg", "a/.1.jpg", "__MACOSX/a/1.jpg", "a/Thumbs.db", "b/desktop.ini")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    index = read_folder(tmp_path)
    assert index.paths == ("a/1.jpg", "b/1.jpg")
    assert dict(index.ignored) == {
        "a/notes.txt": ".txt is not an image extension",
        "a/x.jpg.part": ".part is not an image extension",
        "b/none": "no image extension",
        "stray.jpg": "outside the class folders",
        "readme.md": "outside the class folders",
        "empty": "class folder without images",
    }


def test_files_beside_the_classes_of_a_part_are_told(tmp_path: Path) -> None:
    index = read_folder(touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/x.jpg", "test/a/1.jpg"))
    assert index.ignored == (("train/x.jpg", "outside the class folders"),)


@links
def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = touch(tmp_path / "data", "a/1.jpg", "b/1.jpg", "a/sub/2.jpg")
    touch(tmp_path / "far", "more/3.jpg", "more/deep/4.jpg", "other/5.jpg")
    for link, target in {
        "c": "../far/more",  # a class that is a link
        "b/up": "../..",  # above the root
        "b/here": ".",
        "b/other_class": "../a",  # read as class a
        "a/far": "../../far/other",
        "a/sub/again": "../../../far/other",  # a second way to the same
        "b/2.jpg": "../a/1.jpg",
    }.items():
        (root / link).symlink_to(target)
    (tmp_path / "far" / "more" / "back").symlink_to(root)
    index = read_folder(root)
    found = {path: index.class_names[label] for path, label in zip(index.paths, index.labels, strict=True)}
    assert found == {
        "a/1.jpg": "a",
        "a/sub/2.jpg": "a",
        "a/far/5.jpg": "a",
        "b/1.jpg": "b",
        "b/2.jpg": "b",
        "c/3.jpg": "c",
        "c/deep/4.jpg": "c",
    }
    assert {path for path, _ in index.ignored} == {"b/up", "b/here", "b/other_class", "a/sub/again", "c/back"}


@links
def test_a_root_that_is_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "real", "a/1.jpg", "b/1.jpg")
    (tmp_path / "link").symlink_to("real")
    assert read_folder(tmp_path / "link").paths == ("a/1.jpg", "b/1.jpg")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep such names out")
def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.jpg")).touch()
    index = read_folder(tmp_path)
    assert index.paths == ("a/1.jpg", "b/1.jpg")
    assert index.ignored == (("a/\ufffd.jpg", "its name is not valid UTF-8"),)


@pytest.mark.parametrize(
    ("paths", "asked", "words"),
    [
        (["photos/a/1.jpg"], "fotos", "fotos does not exist; did you mean {root}/photos?"),
        ([], "nowhere/at/all", "does not exist; give a folder that holds one sub-folder of images per class."),
        (["photos.zip"], "photos.zip", "is a file; unpack it and give the folder"),
        (["photos.jpg"], "photos.jpg", "is a file; give the folder"),
        (["x/.hidden"], "x", "x is empty"),
        (["x/1.jpg", "x/2.jpg"], "x", "has 2 images but no class folders; put each class's images into a sub-folder"),
        (["x/1.txt"], "x", "neither images nor class folders"),
        (["x/a/1.txt", "x/b/2.txt"], "x", "has 2 folders but no images in them"),
        (["x/train/a/1.jpg", "x/val/a/1.jpg", "x/c/1.jpg"], "x", "has train and val folders beside 'c'"),
        (["x/dev/a/1.jpg", "x/test/a/1.jpg"], "x", "has dev and test folders but no train folder"),
    ],
)
def test_wrong_folders_are_one_sentence(tmp_path: Path, paths: list[str], asked: str, words: str) -> None:
    touch(tmp_path, *paths)
    with pytest.raises(UserError) as caught:
        read_folder(tmp_path / asked)
    text = str(caught.value)
    assert words.format(root=tmp_path) in text
    assert str(tmp_path / asked) in text
    assert "\n" not in text


def test_a_folder_without_permission(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    tmp_path.chmod(0)
    try:
        if os.access(tmp_path, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(UserError, match="cannot be read"):
            read_folder(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_sizes_that_cannot_be_trained_on(tmp_path: Path) -> None:
    few = read_folder(touch(tmp_path / "few", *(f"{c}/{i}.jpg" for c in "ab" for i in range(10))))
    with pytest.raises(UserError, match=r"has 20 images and the least advised is 500; .*limits=off"):
        check_size(few, limits=True)
    check_size(few, limits=False)
    tiny = read_folder(touch(tmp_path / "tiny", *(f"{c}/{i}.jpg" for c in "ab" for i in range(2))))
    with pytest.raises(UserError, match="too few to hold any out"):
        check_size(tiny, limits=False)
    one = read_folder(touch(tmp_path / "one", "a/1.jpg"))
    with pytest.raises(UserError, match="images of only one class, 'a'; add images of others"):
        check_size(one, limits=False)
    wrapped = read_folder(touch(tmp_path / "wrapped", "inner/a/1.jpg", "inner/b/1.jpg"))
    with pytest.raises(UserError, match=r"only one class, 'inner'; .*give .*wrapped.inner"):
        check_size(wrapped, limits=False)


def test_enough_for_the_card(tmp_path: Path) -> None:
    check_size(read_folder(touch(tmp_path, *(f"{c}/{i}.jpg" for c in "ab" for i in range(250)))), limits=True)


def test_reading_one_file_and_choosing_some(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (tmp_path / "b" / "1.jpg").write_bytes(b"content")
    index = dataclasses.replace(read_folder(tmp_path), groups=("x", None, "y"))
    chosen = index.select([2, 0])
    assert (chosen.paths, chosen.labels, chosen.groups) == (("b/1.jpg", "a/1.jpg"), (1, 0), ("y", "x"))
    assert (chosen.class_names, chosen.read(0), chosen.state(0)[0]) == (("a", "b"), b"content", 7)
    assert chosen.state(0)[1] == (tmp_path / "b" / "1.jpg").stat().st_mtime_ns
    (tmp_path / "b" / "1.jpg").unlink()
    assert chosen.state(0) == (-1, -1)
    with pytest.raises(FileNotFoundError):
        chosen.read(0)


def test_fast_and_light(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{c}/{i}.jpg" for c in range(10) for i in range(1000)))
    start = time.process_time()
    assert len(read_folder(tmp_path).paths) == 10_000
    assert time.process_time() - start < 0.5  # about 0.1
    heavy = "('torch', 'numpy', 'PIL', 'webdataset')"
    script = f"import sys, effnet_lit.data.source; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


NAMES = (
    st.text("abcXYZ 0é_-", min_size=1, max_size=6).map(str.strip).filter(lambda name: name and not name.startswith("."))
)


@given(
    st.dictionaries(NAMES, st.integers(1, 4), min_size=2, max_size=5),
    st.sampled_from([(), ("train", "test"), ("train", "val", "test")]),
    st.randoms(),
)
@settings(deadline=None, max_examples=40)
def test_labels_do_not_depend_on_the_order_of_files(
    counts: dict[str, int], parts: tuple[str, ...], random: Random
) -> None:
    assume(len({name.lower() for name in counts}) == len(counts))
    assume(not {name.lower() for name in counts} & SPLIT_FOLDERS.keys())
    files = [
        f"{part}{name}/{number}.png"
        for part in ([f"{part}/" for part in parts] or [""])
        for name, count in counts.items()
        for number in range(count)
    ]
    random.shuffle(files)
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).touch()
        index = read_folder(Path(folder))
    assert index.class_names == tuple(sorted(counts))
    assert index.paths == tuple(sorted(files))
    for path, label, split in zip(index.paths, index.labels, index.splits, strict=True):
        assert index.class_names[label] == path.split("/")[-2]
        assert split == (path.split("/")[0] if parts else None)

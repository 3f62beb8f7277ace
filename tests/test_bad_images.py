"""Every odd or broken file ends in an image of the right colours the right way up, or in a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import images
import numpy as np
import pytest
from PIL import Image

from effnet_lit.config import DataConfig, UserError
from effnet_lit.data.datamodule import ClassFolderDataModule
from effnet_lit.data.decode import DecodeError, decode
from effnet_lit.data.prepare import PreparedData, prepare

TOLERANCE = 25  # of 255: lossy formats and CMYK shift colours; a wrong corner is off by 90 and more


def prepare_folder(root: Path, cache: Path, limits: bool = False) -> PreparedData:
    return prepare(DataConfig(dir=str(root), cache_dir=str(cache)), 0, limits, 32, lambda done, total: None)


def assert_corners(path: Path, expected: tuple[tuple[int, ...], ...]) -> None:
    found = images.corners_of(decode(path, 32, "squish"))
    assert np.abs(np.subtract(found, expected)).max() <= TOLERANCE, found


@pytest.mark.parametrize("name", images.READABLE)
def test_colours_and_orientation(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        images.READABLE[name](tmp_path / name)
    assert_corners(tmp_path / name, images.CORNERS)


@pytest.mark.parametrize("name", images.READABLE_GREY)
def test_grey(tmp_path: Path, name: str) -> None:
    images.READABLE_GREY[name](tmp_path / name)
    assert_corners(tmp_path / name, images.GREY_CORNERS)


def test_one_bit(tmp_path: Path) -> None:
    images.grey_scene().convert("1", dither=Image.Dither.NONE).save(tmp_path / "one bit.png")
    assert_corners(tmp_path / "one bit.png", ((255,) * 3, (255,) * 3, (0,) * 3, (0,) * 3))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns(tmp_path: Path, orientation: int, extension: str) -> None:
    images.save_exif(tmp_path / f"a.{extension}", orientation, quality=95)
    assert_corners(tmp_path / f"a.{extension}", images.CORNERS)


@pytest.mark.parametrize("name", images.UNREADABLE)
def test_reasons(tmp_path: Path, name: str) -> None:
    write, reason = images.UNREADABLE[name]
    write(tmp_path / name)
    with pytest.raises(DecodeError) as caught:
        decode(tmp_path / name, 32, "squish")
    assert reason in str(caught.value)
    assert 5 < len(str(caught.value)) < 120


def test_a_folder_of_them_all_is_prepared_and_the_bad_are_listed(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"good": 10, "odd": 10, "alone": 1})
    for writers in (images.READABLE, images.READABLE_GREY):
        for name, write in writers.items():
            with warnings.catch_warnings(action="ignore"):
                write(root / "odd" / name)
    for name, (write, _) in images.UNREADABLE.items():
        write(root / "good" / name)
    data = prepare_folder(root, tmp_path / "cache")
    found = {finding["kind"]: finding["items"] for finding in data.audit["findings"]}
    told = [*found["unreadable"], *found["too_large"]]
    assert {path for item in told for path in item["paths"]} == {f"good/{name}" for name in images.UNREADABLE}
    assert all(item["detail"] for item in told)
    assert data.class_names == ("alone", "good", "odd")
    assert {name: sum(parts.values()) for name, parts in data.audit["classes"].items()} == {
        "alone": 1,
        "good": 10,
        "odd": 10 + len(images.READABLE) + len(images.READABLE_GREY),
    }
    assert any(f"Unreadable or truncated: {len(images.UNREADABLE) - 1}, such as good/" in note for note in data.notes)
    batches = list(ClassFolderDataModule(data, 4, 0, 0).train_dataloader())
    assert len(batches) == len(data.part("train")) // 4
    # a class with one image: it trains
    assert list(data.splits[data.labels == 0]) == ["train"]


def test_wrong_unknown_and_missing_extensions_are_listed(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"a": 4, "b": 4})
    for name in ("notes.txt", "image.jpg.part", "no_extension"):
        shutil.copy(root / "a" / "000.png", root / "a" / name)
    data = prepare_folder(root, tmp_path / "cache")
    assert {item["path"] for item in data.audit["ignored"]} == {"a/notes.txt", "a/image.jpg.part", "a/no_extension"}
    assert len(data.paths) == 8


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_links_and_loops(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"a": 4, "b": 4})
    far = images.class_tree(tmp_path / "far", {"more": 3})
    (root / "a" / "linked").symlink_to(far / "more")
    (root / "b" / "linked.png").symlink_to(images.noise(far / "one.png", 77))
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "itself.png").symlink_to(root / "b" / "itself.png")
    (root / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = prepare_folder(root, tmp_path / "cache")
    assert len(data.paths) == 4 + 3 + 4 + 1
    assert {item["path"] for item in data.audit["ignored"]} == {"a/loop", "b/itself.png", "b/gone.png"}


def test_a_read_only_data_folder_is_enough(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"a": 4, "b": 4})
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for folder in (root, root / "a", root / "b"):
        folder.chmod(0o555)
    try:
        assert len(prepare_folder(root, tmp_path / "cache").paths) == 8
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before  # nothing was written there
    finally:
        for folder in (root, root / "a", root / "b"):
            folder.chmod(0o755)


def test_a_cache_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"a": 4, "b": 4})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*data\.cache_dir"):
        prepare_folder(root, tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"digits cannot be written .*data\.cache_dir"):
        prepare(DataConfig(cache_dir=str(tmp_path / "file" / "cache")), 0, True, 32, lambda done, total: None)


def test_a_class_without_a_readable_image_is_one_sentence(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"a": 4, "b": 4})
    (root / "c").mkdir()
    (root / "c" / "x.jpg").write_text("text")
    with pytest.raises(UserError, match=r"Class 'c' .*c/x\.jpg: not an image: looks like text"):
        prepare_folder(root, tmp_path / "cache")


def test_too_few_left_after_the_unreadable_is_one_sentence(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"a": 250, "b": 250}, size=4)
    (root / "a" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"499 .*limits=off"):
        prepare_folder(root, tmp_path / "cache", limits=True)


def test_pillow_writes_nothing_to_the_screen(tmp_path: Path) -> None:
    for name in ("broken exif.jpg", "cmyk.tif"):
        images.READABLE[name](tmp_path / name)
    images.save_truncated(tmp_path / "truncated.tif")
    script = (
        "import sys; from pathlib import Path; from effnet_lit.data.cache import decode_or_reason\n"
        "from effnet_lit.data.folder import Index\n"
        "paths = tuple(sorted(path.name for path in Path(sys.argv[1]).iterdir()))\n"
        "index = Index(Path(sys.argv[1]), ('a',), paths, (0,) * 3, (None,) * 3, ())\n"
        "for i in range(3): decode_or_reason(index, i, 8, 'squish')"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""

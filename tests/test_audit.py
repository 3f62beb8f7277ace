"""Each defect planted among real photographs is found; the photographs themselves raise no alarm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images
import numpy as np
import photos
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from effnet_lit.config import DataConfig, UserError
from effnet_lit.data.prepare import PreparedData, pictures, prepare

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def prepared(root: Path | None, cache: Path, size: int = 64, **settings: Any) -> PreparedData:
    data = DataConfig(dir=str(root) if root else None, cache_dir=str(cache), **settings)
    return prepare(data, 0, False, size, lambda done, total: None)


def found(data: PreparedData) -> dict[str, dict[str, Any]]:
    return {finding["kind"]: finding for finding in data.audit["findings"]}


def paths_of(finding: dict[str, Any]) -> list[list[str]]:
    return [item["paths"] for item in finding["items"]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos.photo_folder(tmp_path / "photos")


def tile(number: int = 5) -> Image.Image:
    return photos.tiles("china")[number]


def blurred() -> Image.Image:
    return photos.tiles("flower")[12].filter(ImageFilter.GaussianBlur(12))


SINGLE: dict[str, tuple[str, str, Callable[[Path], object]]] = {  # kind -> severity, file name, how it is written
    "unreadable": ("error", "x.jpg", lambda path: images.save_truncated(path, format="JPEG")),
    "too_large": ("error", "x.png", images.save_bomb),
    "wrong_extension": ("note", "x.jpg", lambda path: tile().resize((70, 70)).rotate(90).save(path, "PNG")),
    "tiny": ("warning", "x.png", lambda path: tile().resize((16, 16)).rotate(90).save(path)),
    "extreme_aspect": ("note", "x.png", lambda path: tile().crop((0, 20, 120, 40)).resize((480, 80)).save(path)),
    "huge": ("note", "x.jpg", lambda path: tile().rotate(90).resize((1300, 1300)).save(path)),
    "exif_rotated": ("note", "x.jpg", lambda path: images.save_exif(path, 6)),
    "cmyk": ("note", "x.jpg", lambda path: tile().rotate(90).convert("CMYK").save(path)),
    "sixteen_bit": ("note", "x.png", images.save_sixteen_bit),
    "palette": ("note", "x.png", lambda path: tile().rotate(90).quantize(32).save(path)),
    "alpha": ("note", "x.png", images.save_rgba),
    "grayscale": ("note", "x.jpg", lambda path: tile().rotate(90).convert("L").save(path)),
    "animated": ("note", "x.gif", images.save_animated),
    "blank": ("warning", "x.png", lambda path: Image.new("RGB", (80, 80), (90, 120, 60)).save(path)),
    "dark": (
        "note",
        "x.png",
        lambda path: Image.fromarray((np.asarray(tile().rotate(90)) // 12).astype(np.uint8)).save(path),
    ),
    "blurred": ("note", "x.png", lambda path: blurred().save(path)),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_planted_image_is_found_and_nothing_else(root: Path, tmp_path: Path, kind: str) -> None:
    clean = found(prepared(root, tmp_path / "cache"))
    severity, name, write = SINGLE[kind]
    write(root / "flower" / name)
    data = prepared(root, tmp_path / "cache")
    finding = found(data)[kind]
    assert finding["severity"] == severity
    assert finding["count"] == 1 + (clean[kind]["count"] if kind in clean else 0)  # parts of the flower are blurred
    assert paths_of(finding)[0] == [f"flower/{name}"]  # the worst comes first
    assert finding["items"][0]["detail"]
    others = found(data).keys() - clean.keys() - {kind}
    assert others <= {"grayscale", "palette", "tiny", "dark"} - {kind}  # a 16-bit scene is grey as well
    left_out = severity == "error"
    assert data.audit["exclude"] == ([f"flower/{name}"] if left_out else [])
    assert (f"flower/{name}" in data.paths) != left_out


def test_photographs_as_they_are_raise_no_alarm(root: Path, tmp_path: Path) -> None:
    findings = found(prepared(root, tmp_path / "cache"))
    assert {finding["severity"] for finding in findings.values()} <= {"note"}


def test_the_digits_raise_no_alarm(tmp_path: Path) -> None:
    data = prepared(None, tmp_path / "cache")
    assert data.notes == ()
    assert {finding["severity"] for finding in data.audit["findings"]} == {"note"}
    assert sum(len(item["paths"]) for item in found(data)["near_duplicates"]["items"]) < 0.005 * len(data.paths)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the image sets for experiments are not here")
def test_sets_of_photographs_as_they_are(tmp_path: Path) -> None:
    hands = prepared(SHARED / "sign_digits", tmp_path / "cache")
    assert {finding["severity"] for finding in hands.audit["findings"]} == {"note"}
    giants = [["7/IMG_5874.JPG"], ["7/IMG_5935.JPG"], ["7/IMG_5978.JPG"]]
    assert paths_of(found(hands)["exif_rotated"]) == paths_of(found(hands)["huge"]) == giants
    waste = prepared(SHARED / "trashnet", tmp_path / "cache")
    assert paths_of(found(waste)["label_conflict"]) == [
        ["glass/glass115.jpg", "metal/metal91.jpg"],
        ["glass/glass176.jpg", "plastic/plastic152.jpg"],
        ["glass/glass389.jpg", "plastic/plastic332.jpg"],
    ]
    assert [f["kind"] for f in waste.audit["findings"] if f["severity"] != "note"] == ["label_conflict"]


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recoded": lambda image: image,
    "halved": lambda image: image.resize((60, 60), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("number", [3, 20, 33])
def test_edited_copies_are_near_duplicates(root: Path, tmp_path: Path, edit: str, number: int) -> None:
    EDITS[edit](photos.tiles("china")[number]).save(root / "china" / "copy.jpg", quality=75)
    data = prepared(root, tmp_path / "cache")
    copies = [f for kind in ("near_duplicates", "near_across") if (f := found(data).get(kind))]
    assert [paths_of(f) for f in copies] == [[[f"china/{number:02}.jpg", "china/copy.jpg"]]]
    assert len(data.paths) == 81  # told and left alone
    together = prepared(root, tmp_path / "cache", near_duplicates="together")
    part = dict(zip(together.paths, together.splits, strict=True))
    assert part["china/copy.jpg"] == part[f"china/{number:02}.jpg"]


def test_copies_across_classes_and_given_parts(root: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    for part, numbers in (("train", range(24)), ("val", range(24, 30)), ("test", range(30, 40))):
        for name in photos.NAMES:
            (parts / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(root / name / f"{number:02}.jpg", parts / part / name)
    shutil.copy(parts / "train/china/03.jpg", parts / "test/china/leak.jpg")
    shutil.copy(parts / "test/flower/31.jpg", parts / "val/china/conflict.jpg")
    photos.tiles("china")[4].save(parts / "test/china/near leak.jpg", quality=50)
    photos.tiles("flower")[5].save(parts / "train/china/near conflict.jpg", quality=75)
    data = prepared(parts, tmp_path / "cache")
    expected = {
        "label_conflict": ("error", ["test/flower/31.jpg", "val/china/conflict.jpg"], "china, flower"),
        "leak": ("warning", ["test/china/leak.jpg", "train/china/03.jpg"], "test, train"),
        "near_leak": ("warning", ["test/china/near leak.jpg", "train/china/04.jpg"], "test, train"),
        "near_label_conflict": ("warning", ["train/china/near conflict.jpg", "train/flower/05.jpg"], "china, flower"),
    }
    for kind, (severity, paths, detail) in expected.items():
        finding = found(data)[kind]
        assert (finding["severity"], finding["count"]) == (severity, 2)
        assert finding["items"] == [{"paths": paths, "detail": detail}]
    part = dict(zip(data.paths, map(str, data.splits), strict=True))
    assert part["test/china/leak.jpg"] == "train"
    assert part["test/china/near leak.jpg"] == "test"
    assert part["train/china/near conflict.jpg"] == "train"
    assert "test/flower/31.jpg" not in part
    together = prepared(parts, tmp_path / "cache", near_duplicates="together")
    assert dict(zip(together.paths, map(str, together.splits), strict=True))["test/china/near leak.jpg"] == "train"


def test_uneven_and_small_classes(tmp_path: Path) -> None:
    root = images.class_tree(tmp_path / "data", {"many": 120, "some": 60, "few": 9})
    findings = found(prepared(root, tmp_path / "cache"))
    assert findings["imbalance"]["severity"] == "warning"
    assert "'many' has 14.0 times the training images of 'few'" in findings["imbalance"]["next"]
    assert [item["detail"] for item in findings["small_class"]["items"]] == ["few: 6 training images"]
    assert [item["detail"] for item in findings["unmeasured_class"]["items"]] == ["few: 2 test images"]


@pytest.mark.parametrize(("names", "told"), [(("left", "right"), True), (("cat", "dog"), False), (("6", "9"), True)])
def test_names_that_suggest_that_mirroring_matters(tmp_path: Path, names: tuple[str, ...], told: bool) -> None:
    root = images.class_tree(tmp_path / "data", dict.fromkeys(names, 5))
    assert ("mirror" in found(prepared(root, tmp_path / "cache"))) == told


def test_the_audit_is_an_exclusion_list(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "china/07.jpg", root / "flower/wrong.jpg")
    first = prepared(root, tmp_path / "cache")
    assert first.audit["exclude"] == ["china/07.jpg", "flower/wrong.jpg"]
    by_hand = first.audit | {"exclude": ["flower/wrong.jpg", "flower/00.jpg", "gone.jpg"]}
    (tmp_path / "audit.json").write_text(json.dumps(by_hand))
    second = prepared(root, tmp_path / "cache", exclude=str(tmp_path / "audit.json"))
    assert "china/07.jpg" in second.paths
    assert not {"flower/wrong.jpg", "flower/00.jpg"} & set(second.paths)
    assert second.audit["exclude"] == ["flower/00.jpg", "flower/wrong.jpg"]
    assert second.audit["images"] == {"found": 81, "used": 79, "left_out": 2}
    assert any("2 images left out, as" in note for note in second.notes)
    assert any("1 paths under 'exclude'" in note for note in second.notes)


@pytest.mark.parametrize("content", ["", "[]", '{"exclude": "a.jpg"}', '{"exclude": [1]}', "{}"])
def test_a_list_that_is_none_is_one_sentence(root: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "audit.json").write_text(content)
    with pytest.raises(UserError, match=r"data\.exclude=.*audit\.json"):
        prepared(root, tmp_path / "cache", exclude=str(tmp_path / "audit.json"))


def test_same_images_give_the_same_audit(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "china/07.jpg", root / "flower/wrong.jpg")
    first, second = (prepared(root, tmp_path / name).audit for name in ("cache 1", "cache 2"))
    assert json.dumps(first) == json.dumps(second)


def test_pictures_show_what_was_left_out_too(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "china/07.jpg", root / "flower/wrong.jpg")
    images.save_bomb(root / "flower" / "bomb.png")
    picture = pictures(prepared(root, tmp_path / "cache"))
    wrong, right = picture("flower/wrong.jpg"), picture("china/07.jpg")
    assert wrong is not None and right is not None
    assert np.array_equal(wrong.pixels, right.pixels)
    assert (wrong.width, wrong.height, wrong.pixels.shape) == (120, 120, (64, 64, 3))
    assert picture("flower/bomb.png") is None

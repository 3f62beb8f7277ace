"""A CSV file instead of class folders, and groups from a column or from paths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import images
import pytest

from effnet_lit.composition import compose
from effnet_lit.config import DataConfig, UserError
from effnet_lit.data.folder import Index, check_size
from effnet_lit.data.prepare import prepare
from effnet_lit.data.source import read_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(30):
        images.noise(tmp_path / "photos" / "img" / f"{number:02}.png", number)
    return tmp_path / "photos"


def lines(count: int = 30) -> list[str]:
    return [f"img/{number:02}.png,{'cat' if number % 3 else 'dog'}" for number in range(count)]


def read(root: Path, content: str, group: str | None = None, encoding: str = "utf-8") -> Index:
    manifest = root / "labels.csv"
    manifest.write_bytes(content.encode(encoding))
    return read_images(root, manifest, group)


def test_paths_and_labels(root: Path) -> None:
    index = read(root, "\n".join(["path,label", *lines()]))
    assert index.class_names == ("cat", "dog")
    assert index.paths == tuple(f"img/{number:02}.png" for number in range(30))
    assert index.labels == tuple(0 if number % 3 else 1 for number in range(30))
    assert set(index.splits) == {None}
    assert index.groups == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["image,class", "FileName,Category", " path , label ", "file,target"])
def test_usual_ways_to_write_it(root: Path, header: str, delimiter: str, encoding: str) -> None:
    content = "\r\n".join([header, *lines(), "", ""]).replace(",", delimiter)
    assert read(root, content, encoding=encoding).labels == read(root, "\n".join(["path,label", *lines()])).labels


def test_the_order_of_lines_does_not_matter(root: Path) -> None:
    assert read(root, "\n".join(["path,label", *lines()])) == read(root, "\n".join(["path,label", *lines()[::-1]]))


def test_absolute_paths_twice_the_same_line_and_quotes(root: Path) -> None:
    images.noise(root / "a, b.png", 99)
    rows = [f"{root}/img/00.png,x", "./img/01.png,y", "img/01.png,y", '"a, b.png","x"']
    index = read(root, "\n".join(["path,label", *rows]))
    assert index.paths == ("a, b.png", "img/00.png", "img/01.png")


def test_what_other_programs_write(root: Path) -> None:
    windows = read(root, "path,label\nimg\\00.png,x\n.\\img\\01.png,y\n")
    assert windows.paths == ("img/00.png", "img/01.png")
    pandas = read(root, ",path,label\n0,img/00.png,x\n1,img/01.png,y\n2,img/01.png,y\n")
    assert pandas.splits == (None, None)
    excel = read(root, "\n;;\npath;label;\nimg/00.png; x ;\nimg/01.png;y\n")
    assert excel.class_names == pandas.class_names == ("x", "y")


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_absolute_paths_by_way_of_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    content = f"path,label\n{tmp_path / 'link'}/img/00.png,x\n{root}/img/01.png,y\n"
    assert read(root, content).paths == ("img/00.png", "img/01.png")
    assert read(tmp_path / "link", content).paths == ("img/00.png", "img/01.png")


def test_files_with_another_extension_or_none(root: Path) -> None:
    (root / "img" / "00.png").rename(root / "00")
    index = read(root, "path,label\n00,x\nimg/01.png,y\n")
    assert index.paths == ("00", "img/01.png")
    assert index.read(0).startswith(b"\x89PNG")


def test_whole_numbers_are_sorted_as_numbers(root: Path) -> None:
    rows = [f"img/{number:02}.png,{number % 12}" for number in range(30)]
    assert read(root, "\n".join(["path,label", *rows])).class_names == tuple(map(str, range(12)))


def test_class_names_do_not_depend_on_the_process(root: Path) -> None:
    (root / "labels.csv").write_text("path,label\n" + "\n".join(f"img/{i:02}.png,{'0' * i}1" for i in range(8)))
    script = (
        "import sys; from pathlib import Path; from effnet_lit.data.source import read_images; "
        "root = Path(sys.argv[1]); print(read_images(root, root / 'labels.csv', None).class_names)"
    )
    seen = {
        subprocess.check_output([sys.executable, "-c", script, root], env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in "123"
    }
    assert len(seen) == 1


def test_splits_and_groups(root: Path) -> None:
    rows = [f"{line},{('train', 'Valid', 'TEST')[i % 3]},p{i // 6}" for i, line in enumerate(lines())]
    index = read(root, "\n".join(["path,label,split,patient", *rows]), "patient")
    assert index.splits[:3] == ("train", "val", "test")
    assert index.groups[:7] == ("p0",) * 6 + ("p1",)
    assert read(root, "\n".join(["path,label,split,Patient", *rows]), " patient").groups == index.groups
    by_path = read(root, "\n".join(["path,label", *lines()]), r"/(\d)")
    assert by_path.groups == tuple(str(number // 10) for number in range(30))
    some = read(root, "\n".join(["path,label", *lines()]), r"/0(\d)|/[12]\d")
    assert some.groups == (*map(str, range(10)), *[None] * 20)  # not all of the others together
    some = read(root, "path,label,patient\nimg/00.png,x,\nimg/01.png,y,p1\n", "patient")
    assert some.groups == (None, "p1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "lists no images"),
        ("path,label\n", "lists no images"),
        ("id,label\n1,cat\n", r"no column 'path' \(its columns: id, label\)"),
        ("path,kind of thing\nimg/00.png,cat\n", "no column 'label'"),
        ("path,label\nimg/00.png,\n", r"line 2: img/00\.png has no label"),
        ("path,label\nimg/00.png,cat\nimg/00.png,dog\n", "line 3: .* is 'dog' here and 'cat' above"),
        ("path,label,split\nimg/00.png,cat,training\n", r"labels\.csv, line 2: .* has the split 'training'"),
        (
            "path,label,split\nimg/00.png,cat,train\nimg/00.png,cat,test\n",
            "line 3: .* is 'test' here and 'train' above",
        ),
        ("path,label\nimg/00.png,cat, big\n", "line 2 has 3 values for 2 columns; put quotes"),
        ("path,label\nimg/00.png,cat\nimg/31.png,dog\n", r"1 of 2 .* such as img/31\.png; put them back, or remove"),
        ("path,label\nimg/00.png,cat\nimg/01.jpg,dog\n", r"such as img/01\.jpg; did you mean 01\.png\?"),
        ("path,label\n../img/00.png,cat\n", "line 2: '../img/00.png' is no file below"),
        (
            "path,label\nimg/00.png,cat\nimg/01,dog\n",
            r"1 of 2 files are not there, such as img/01; did you mean 01\.png\?",
        ),
        ("path,label\nother/00.png,cat\n", "set data.dir to the folder that the paths start from"),
    ],
)
def test_mistakes_are_one_sentence(root: Path, content: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(root, content)


def test_a_file_that_is_no_text_is_one_sentence(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.manifest=.* cannot be read"):
        read(root, "path,label\nimg/00.png,großer Hund\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"data\.manifest=.* cannot be read"):
        read_images(root, root / "nowhere.csv", None)


def test_one_label_is_one_sentence(root: Path) -> None:
    (root / "cat" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="images of only one class, 'dog'; add images of others"):
        check_size(read(root, "path,label\nimg/00.png,dog\nimg/01.png,dog\n"), limits=False)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("(", "no regular expression"),
        ("patient", r"finds nothing in img/00\.png; give a pattern that fits every path, or a column of .*labels\.csv"),
        (r"\d*", r"finds nothing in img/00\.png"),  # the empty text, at the start of every path
    ],
)
def test_a_group_that_is_none_is_one_sentence(root: Path, group: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(root, "\n".join(["path,label", *lines()]), group)


def test_a_run_on_a_manifest(root: Path, tmp_path: Path) -> None:
    rows = [f"{line},p{i // 3}" for i, line in enumerate(lines())]
    (root / "labels.csv").write_text("\n".join(["path,label,patient", *rows]))
    config = compose(f"data.manifest={root / 'labels.csv'}", "data.group=patient", "limits=off")
    assert config.data.dir == str(root)  # the folder that the file lies in
    data = prepare(
        DataConfig(
            dir=config.data.dir, manifest=config.data.manifest, group="patient", cache_dir=str(tmp_path / "cache")
        ),
        0,
        False,
        16,
        lambda done, total: None,
    )
    part = dict(zip(data.paths, data.splits, strict=True))
    for patient in range(10):
        assert len({str(part[f"img/{number:02}.png"]) for number in range(3 * patient, 3 * patient + 3)}) == 1

"""Commands that are printed for people to type come back as what was meant, through a shell and Hydra."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import images
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as some

from effnet_lit.commands import for_shell, override, typed
from effnet_lit.composition import compose
from effnet_lit.config import UserError
from effnet_lit.overrides import with_quotes

TEXT = some.text(some.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1)


def read_back(line: str) -> Any:
    """The value that Hydra gets of a command's last word."""
    return OverridesParser.create().parse_override(shlex.split(line)[-1]).value()


@given(TEXT)
def test_any_text_is_read_back(text: str) -> None:
    value = read_back(typed("python train.py", override("data.dir", text)))
    assert str(value) == text and value is not None


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("photos", "python train.py data.dir=photos"),
        ("/a/my photos", 'python train.py "data.dir=/a/my photos"'),
        ("Bäume", "python train.py \"data.dir='Bäume'\""),
        ("null", "python train.py \"data.dir='null'\""),
        ("$HOME", "python train.py 'data.dir='\"'\"'$HOME'\"'\"''"),
        ([0.5, 1], "python train.py 'data.dir=[0.5,1]'".replace("'", '"')),
        (None, "python train.py data.dir=null"),
    ],
)
def test_no_more_quotes_than_needed(value: Any, line: str) -> None:
    assert typed("python train.py", override("data.dir", value)) == line
    assert read_back(line) == value


@pytest.mark.parametrize("name", ["Bäume", "日本", "ä (1)", "été, hiver", "my photos"])
def test_a_folder_is_found_as_people_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = images.class_tree(tmp_path / name, {"a": 3, "b": 3})
    monkeypatch.chdir(tmp_path)
    assert compose(f"data.dir={name}", "limits=off").data.dir == str(folder)


@pytest.mark.parametrize(
    "name",
    [
        "photos",
        "my photos",
        "a, b",
        "it's",
        "x=1",
        "{a}",
        "[b]",
        "$HOME",
        "ä (1)",
        'say "cheese"',
        "back\\slash",
        "end\\",
    ],
)
def test_a_path_survives_the_way_through_hydra(tmp_path: Path, name: str) -> None:
    folder = images.class_tree(tmp_path / name, {"a": 3, "b": 3})
    config = compose(override("data.dir", folder), "limits=off")
    assert config.data.dir == str(folder)


@pytest.mark.parametrize(
    "text", ["preset=small,medium", "data.mean=[1,2,3]", "data.dir='a b'", "no equals sign", "name=a,b", "x={a: 1}"]
)
def test_what_hydra_reads_stays(text: str) -> None:
    assert with_quotes(text) == text


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("name=größer,kleiner", "name='größer',kleiner"),
        ("data.dir=null,Bäume", "data.dir=null,'Bäume'"),
        ("data.dir=noise, Bäume", "data.dir=noise,'Bäume'"),
        ("name=choice(größer,kleiner)", "name=choice(größer,kleiner)"),
    ],
)
def test_values_of_a_sweep_are_quoted_one_by_one(given: str, read: str) -> None:
    assert with_quotes(given) == read


def test_a_windows_shell_takes_double_quotes() -> None:
    assert for_shell(r"runs\2026-photos", windows=True) == r"runs\2026-photos"
    assert for_shell(override("data.dir", r"C:\my photos"), windows=True) == "\"data.dir='C:\\my photos'\""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("data.dir='a", "cannot be read"),
        ("name=Bä,ü", "'Bä','ü' holds a comma"),
        ("name=${foo}", "Interpolation key 'foo' not found"),
        ("data.mean=3", "has the wrong type; give numbers like"),
    ],
)
def test_what_cannot_be_read_is_told(given: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        compose(given)

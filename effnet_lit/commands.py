"""Commands that people are told to type: the shell, and Hydra behind it, read back what was meant."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from effnet_lit.config import FEWEST_IMAGES, UserError

HYDRA_WORDS = ("null", "true", "false", "inf", "nan")  # in any case, they are values of their own


def typed(program: str, *words: str | Path) -> str:
    """A whole command line."""
    return " ".join([program, *(for_shell(str(word)) for word in words)])


def going_on(run: Path) -> str:
    """The command that resumes a run."""
    return typed("python train.py", override("resume", run))


def training_on(folder: Path, images: int, settings: Sequence[str] = ()) -> str:
    """The command that trains on a folder of so many images, with these settings."""
    few = ["limits=off"] if images < FEWEST_IMAGES and "limits=off" not in settings else []
    return typed("python train.py", override("data.dir", folder), *settings, *few)


def must_be_installed(doing: str, extra: str, *packages: str) -> None:
    """Packages of an extra.

    Raises:
        UserError: some are missing, and what installs them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f'{doing} needs {" and ".join(missing)}: pip install "effnet_lit[{extra}]"')


def for_shell(word: str, windows: bool = os.name == "nt") -> str:
    """As the system's shell takes it for one word; in double quotes where these do."""
    if windows:
        return subprocess.list2cmdline([word])
    plain = shlex.quote(word)
    return plain if plain == word or re.search(r'["$`\\!]', word) else f'"{word}"'


def override(key: str, value: Any) -> str:
    """key=value as Hydra reads it back."""
    return f"{key}={for_hydra(value)}"


def for_hydra(value: Any) -> str:
    """A value in Hydra's grammar; text that could mean something else stands in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(for_hydra, value)) + "]"
    text = str(value)
    if not isinstance(value, str | Path) or (is_plain(text) and not is_number(text)):
        return text
    # Hydra takes backslashes for themselves, but before a quote
    quoted = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{quoted}'"


def is_plain(text: str) -> bool:
    """Whether Hydra takes these letters for text without quotes."""
    return bool(re.fullmatch(r"[A-Za-z0-9_./-]+( +[A-Za-z0-9_./-]+)*", text)) and text.lower() not in HYDRA_WORDS


def is_number(text: str) -> bool:
    """Whether it reads as one."""
    try:
        float(text)
    except ValueError:
        return False
    return True

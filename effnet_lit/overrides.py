"""Overrides as people type them: made readable for Hydra, checked, and every error in one sentence."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from effnet_lit.commands import for_hydra, override, typed
from effnet_lit.config import GROUPS, Config, UserError, knobs

# What fit() sets itself, and the setting to use instead.
OWNED_TRAINER_ARGUMENTS = {
    "max_epochs": "epochs",
    "min_epochs": "epochs",
    "max_time": "epochs",
    "callbacks": "training.*",
    "logger": "log.*",
    "default_root_dir": "hydra.run.dir",
    "use_distributed_sampler": "seed",
    "enable_checkpointing": "resume",
    "plugins": "trainer.precision or trainer.strategy",
    "overfit_batches": "trainer.limit_train_batches",
}


def conf_dir() -> Path:
    """The folder of YAML pages: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"conf/config.yaml is neither in nor beside {package}: the installation is incomplete")


def trainer_arguments() -> dict[str, None]:
    """Every argument of Lightning's Trainer, read from its source text because importing it takes seconds."""
    spec = importlib.util.find_spec("lightning")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    trainer = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    init = next(node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return {argument.arg: None for argument in init.args.kwonlyargs}


def with_quotes(text: str) -> str:
    """What a person types as Hydra reads it: a value with letters that its grammar does not know, such as those of
    most languages, gets the quotes that it wants; of several values between commas each one."""
    key, equals, value = text.partition("=")
    if not equals or re.search(r"""['"\[\]{}$=]|^\w+\(""", value) or is_read(text):
        return text
    parts = [value] if Path(value).expanduser().exists() else value.split(",")
    quoted = ",".join(part if is_read(f"{key}={part}") else for_hydra(part.strip()) for part in parts)
    return f"{key}={quoted}" if is_read(f"{key}={quoted}") else text


def is_read(text: str) -> bool:
    """Whether Hydra can read an override."""
    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return True


def known_keys() -> list[str]:
    """Every key that may stand on the command line, except Hydra's own."""
    return [
        *(key for key, _, _ in knobs()),
        *(f"trainer.{name}" for name in trainer_arguments()),
        "preset",
        "example",
        "sweep",
    ]


def check_keys(overrides: Sequence[str]) -> None:
    """Raise ``UserError`` for the first override that cannot be read or names no setting."""
    keys = known_keys()
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException as error:
            if "=" not in text and Path(text).expanduser().exists():
                raise UserError(
                    f"{text} is no setting; to train on it: {typed('python train.py', override('data.dir', text))}"
                ) from error
            raise UserError(
                f"'{text}' cannot be read; write key=value, and quote a value with spaces or commas: \"key='a value'\"."
            ) from error
        key = parsed.key_or_group
        if key.startswith("hydra.") or key.startswith("hydra/"):
            continue
        owner = key.removeprefix("trainer.")
        if key.startswith("trainer.") and owner in OWNED_TRAINER_ARGUMENTS:
            raise UserError(f"{key} is set by the program; use {OWNED_TRAINER_ARGUMENTS[owner]} instead.")
        if key not in keys:
            raise UserError(f"{key} is not a setting; {suggestion(key, keys)}")


def suggestion(key: str, keys: Sequence[str]) -> str:
    """What the user may have meant."""
    last = key.rpartition(".")[2]
    same_ending = [known for known in keys if known.rpartition(".")[2] == last]
    endings = {known.rpartition(".")[2]: known for known in keys}
    close = same_ending or difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    close = close or [endings[name] for name in difflib.get_close_matches(last, endings, n=1, cutoff=0.75)]
    return f"did you mean {close[0]}?" if close else "python train.py --help lists them all."


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence for an error of Hydra or OmegaConf."""
    cause = error.__cause__ or error
    text = str(cause)
    missing = re.search(
        r"(?:Could not find|could not be found)[^']*'(preset|example|sweep)/([^']*)'", f"{error}\n{text}"
    )
    if missing:
        group, name = missing.groups()
        names = sorted(page.stem for page in (conf_dir() / group).glob("*.yaml"))
        return f"{group}={name} does not exist; use one of: {', '.join(names)}."
    if "hydra/sweeper/optuna" in f"{error}\n{text}":
        return 'sweep=optuna needs an extra; install it: pip install "effnet_lit[search]".'
    if "Ambiguous value" in text:
        value = re.findall(r"argument '?(.*?)'?$", text, re.MULTILINE)[0]
        return f"{value} holds a comma, which means several runs; add -m, or quote it: \"key='a,b'\"."
    wrong = re.search(
        r"Value '(.*?)'(?: of type '.*')? (?:could not be converted|is incompatible|is not a valid)", text
    )
    key = re.search(r"full_key: (\S+)", text)
    if wrong and key:
        return f"{key[1]}={wrong[1]} has the wrong type; give {expected(key[1])}."
    refused = re.match("Invalid value assigned|Cannot (merge|convert)", text)
    if refused and key and (given := next((one for one in overrides if one.startswith(f"{key[1]}=")), None)):
        return f"{given} has the wrong type; give {expected(key[1])}."
    given = " ".join(overrides)
    return f"{text.splitlines()[0]} (in: {given}); python train.py --help lists every setting."


def expected(key: str) -> str:
    """The kind of value a key takes, in words."""
    group, _, name = key.rpartition(".")
    kind = {item.name: str(item.type) for item in dataclasses.fields(GROUPS.get(group, Config))}.get(name, "")
    kinds = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "list[float]": "numbers like [0.5,0.5,0.5]",
    }
    words = [kinds[part] for part in kind.split(" | ") if part in kinds]
    return " or ".join([*words, *(["auto"] if "str" in kind and words else [])]) or "text"

"""From overrides to a ``Config``: the only road, shared by train.py, the CLI, notebooks and tests."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from effnet_lit.checks import check
from effnet_lit.commands import for_hydra, override, typed
from effnet_lit.config import (
    EMBEDDED_DATA_IMAGES,
    EMBEDDED_DATA_NAME,
    EVAL_TO_TRAIN_RATIO,
    GROUPS,
    Config,
    UserError,
    from_dict,
    knobs,
    preset_for,
)
from effnet_lit.data.folder import Index, check_size
from effnet_lit.data.names import mirror_changes_label
from effnet_lit.data.source import read_images
from effnet_lit.model.scaling import SCALES

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

# What a resumed run may find elsewhere; the images themselves must be the same.
OF_THE_MACHINE = (
    "data.dir",
    "data.manifest",
    "data.split",
    "data.exclude",
    "data.cache",
    "data.cache_dir",
    "data.workers",
    "trainer.accelerator",
    "trainer.precision",
)
LAYER_DECAY = 0.9  # docs/decisions/fine_tuning.md
DATA_PATHS = ("dir", "manifest", "split", "exclude", "cache_dir")


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


def register_schema() -> None:
    """Tell Hydra the typed vocabulary and the Trainer's arguments; safe to call again."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    ours = Config().trainer
    store.store(name="trainer_arguments", node={"trainer": {**trainer_arguments(), **ours}})
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("by_weights", by_weights, replace=True)


def run_name(name: str, data_dir: str | None, manifest: str | None, preset: str) -> str:
    """How a run folder's name ends: as asked for, or data folder and preset."""
    if name != "auto":
        return name
    folder = Path(data_dir) if data_dir else Path(manifest).resolve().parent if manifest else Path(EMBEDDED_DATA_NAME)
    return f"{folder.name}-{preset}"


def by_weights(loaded: str, random: str, *, _root_: DictConfig) -> str:
    """One of a preset's two values: for loaded weights, or for a network that starts from random ones."""
    embedded = _root_.data.dir is None and _root_.data.manifest is None
    return random if start_of(_root_.model.weights, embedded) == "none" else loaded


def start_of(weights: str, embedded: bool) -> str:
    """``model.weights`` without ``auto``: ImageNet for your own images, none for the embedded digits."""
    return weights if weights != "auto" else "none" if embedded else "imagenet"


def compose(*overrides: str) -> Config:
    """The run that these overrides describe, ranges checked and every ``auto`` that needs no device resolved.

    Raises:
        UserError: a typo, a wrong type, a value out of range, or a ``data.dir`` that cannot be trained on.
    """
    return compose_with_preset(overrides)[0]


def compose_with_preset(overrides: Sequence[str]) -> tuple[Config, str]:
    """``compose``, and the name of the preset that was chosen."""
    register_schema()
    overrides = [with_quotes(text) for text in overrides]
    check_keys(overrides)
    config, preset = read_pages(overrides)
    check(config)
    paths = {f"data.{key}": getattr(config.data, key) for key in DATA_PATHS} | {"resume": config.resume}
    for key, value in paths.items():
        if value is not None and not value.strip():
            raise UserError(f"{key} is empty; give a path, or leave it out.")
    if config.resume is not None:
        return stored_config(config.resume, overrides, config), preset
    index = None
    for key in DATA_PATHS:
        if value := getattr(config.data, key):
            setattr(config.data, key, str(Path(value).expanduser().resolve()))
    if config.data.manifest and config.data.dir is None:
        config.data.dir = str(Path(config.data.manifest).parent)
    if config.data.dir is not None:
        manifest = Path(config.data.manifest) if config.data.manifest else None
        index = read_images(Path(config.data.dir), manifest, config.data.group)
        check_size(index, config.limits == "on")
    if preset == "auto":
        preset = preset_for(len(index.paths) if index else EMBEDDED_DATA_IMAGES)
        config = dataclasses.replace(read_pages([*overrides, f"preset={preset}"])[0], data=config.data)
        check(config)
    resolve(config, preset, index)
    return config, preset


def read_pages(overrides: Sequence[str]) -> tuple[Config, str]:
    """Let Hydra merge schema, pages and overrides; returns the typed object and the preset's name."""
    outer = GlobalHydra.instance().hydra  # inside a job, Hydra's own; compose needs the place for a moment
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            merged = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        preset = str(merged.hydra.runtime.choices.preset)
        OmegaConf.set_struct(merged, False)
        del merged["hydra"]
        config = OmegaConf.to_object(merged)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = outer
    assert isinstance(config, Config)
    config.trainer = {key: value for key, value in config.trainer.items() if value is not None}
    return config, preset


def resolve(config: Config, preset: str, index: Index | None) -> None:
    """Replace each ``auto`` that depends on the data and the preset, not on the device, by what it becomes."""
    data, embedded = config.data, config.data.dir is None
    if config.batch_size == "auto":
        config.batch_size = read_pages([f"preset={preset}"])[0].batch_size
        check(config)
    config.name = run_name(config.name, data.dir, data.manifest, preset)
    config.model.weights = start_of(config.model.weights, embedded)
    random = config.model.weights == "none"
    if random and config.training.strategy == "probe":
        raise UserError("training.strategy=probe needs weights to look with; set model.weights=imagenet or a file.")
    if random and config.training.batchnorm == "frozen":
        raise UserError("training.batchnorm=frozen needs loaded weights; use train, or set model.weights.")
    if random and config.training.head_first == "on":
        raise UserError("training.head_first=on needs loaded weights; use auto, or set model.weights.")
    if config.training.layer_decay == "auto":
        config.training.layer_decay = 1.0 if random else LAYER_DECAY
    if Path(config.model.weights).expanduser().is_file():
        config.model.weights = str(Path(config.model.weights).expanduser().resolve())
    if data.image_size == "auto":
        own_size = SCALES[config.model.name].resolution if config.model.name in SCALES else 224
        data.image_size = 64 if embedded else own_size
    assert isinstance(data.image_size, int)
    if config.model.name == "vit_b_16":  # its position embedding has one size, in patches of 16 pixels
        if data.image_size % 16:
            raise UserError(f"data.image_size={data.image_size} must be a multiple of 16 for vit_b_16; use 224.")
        data.eval_size = data.image_size
    if data.eval_size == "auto":
        data.eval_size = eval_size_for(data.image_size)
    if data.horizontal_flip == "auto":
        data.horizontal_flip = "off" if index is None or mirror_changes_label(index.class_names) else "on"


def eval_size_for(image_size: int) -> int:
    """8/7 of the training size, rounded down to a multiple of 32: 224 -> 256, 96 -> 96, 64 -> 64.

    The network halves the size five times. Between two multiples of 32 the last maps of a small image change their
    shape (64 -> 2x2, 73 -> 3x3), and with it how much of them is padding: accuracy collapses.
    """
    return max(image_size, int(image_size * EVAL_TO_TRAIN_RATIO) // 32 * 32)


def stored_config(run: str, overrides: Sequence[str], given: Config) -> Config:
    """The settings of an earlier run, to go on with. What belongs to the machine may be ``given`` anew, no other."""
    keys = [text.partition("=")[0] for text in overrides]
    for key, text in zip(keys, overrides, strict=True):
        if key not in ("resume", *OF_THE_MACHINE) and not key.startswith("hydra."):
            raise UserError(f"resume={run} goes on with that run's own settings; remove {text} from the command.")
    folder = Path(run).expanduser().resolve()
    if folder.is_file() and folder.name == "latest":  # where links are not to be had
        folder = Path(folder.read_text(encoding="utf-8").strip())
    page = folder / "config.yaml"
    if not page.is_file():
        raise UserError(f"resume={run} is not a run folder (it has no config.yaml); give a folder under runs/.")
    if (folder / "model.safetensors").is_file():
        raise UserError(
            f"resume={run} is finished: its model is {folder / 'model.safetensors'}; start a new run instead."
        )
    config = from_dict(yaml.safe_load(page.read_text(encoding="utf-8")))
    config.resume = str(folder)
    for key in (key for key in keys if key in OF_THE_MACHINE):
        group, _, name = key.partition(".")
        if group == "trainer":
            config.trainer[name] = given.trainer[name]
        else:
            setattr(config.data, name, getattr(given.data, name))
    return config


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

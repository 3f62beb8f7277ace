"""From overrides to a Config: presets, examples, autos, and one sentence for each mistake."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from effnet_lit.composition import LAYER_DECAY, compose, mirror_changes_label, run_name
from effnet_lit.config import UserError, to_dict
from effnet_lit.overrides import OWNED_TRAINER_ARGUMENTS, conf_dir, trainer_arguments
from effnet_lit.training.optim import peak_rate

PRESETS = {  # the card's table: batch_size, epochs, learning_rate, dropout_rate, augmentation
    "small": (16, 30, 5e-4, 0.3, "heavy"),
    "medium": (32, 18, 1e-3, 0.2, "standard"),
    "large": (64, 12, 1.5e-3, 0.15, "light"),
}
EXAMPLES = {
    "mobile_app": (32, 20, 1e-3, 0.2),
    "cloud_service": (64, 12, 1e-3, 0.2),
    "edge_device": (16, 25, 5e-4, 0.25),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_cards(preset: str) -> None:
    config = compose(f"preset={preset}", "model.weights=imagenet")
    five = (config.batch_size, config.epochs, config.learning_rate, config.dropout_rate, config.augmentation)
    assert five == PRESETS[preset]


@pytest.mark.parametrize(("preset", "under_weights"), [("small", "heavy"), ("medium", "standard")])
def test_without_weights_images_are_varied_less(preset: str, under_weights: str, class_folder: Path) -> None:
    own = [f"data.dir={class_folder}", "limits=off", f"preset={preset}"]
    assert compose(*own).augmentation == under_weights
    assert compose(*own, "model.weights=none").augmentation == compose(f"preset={preset}").augmentation == "light"
    assert compose(*own, "model.weights=none", "augmentation=heavy").augmentation == "heavy"


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_the_cards_and_win_over_the_preset(example: str) -> None:
    config = compose(f"example={example}", "preset=large")
    assert (config.batch_size, config.epochs, config.learning_rate, config.dropout_rate) == EXAMPLES[example]
    assert config.expectation


def test_the_command_line_wins_over_everything() -> None:
    assert compose("preset=small", "example=edge_device", "epochs=7").epochs == 7


def test_auto_takes_the_preset_by_the_number_of_images(class_folder: Path) -> None:
    assert compose().epochs == PRESETS["medium"][1]  # 1,797 digits
    config = compose(f"data.dir={class_folder}", "limits=off")
    assert (config.batch_size, config.name) == (16, f"{class_folder.name}-small")


@pytest.mark.parametrize(
    ("folder", "manifest", "expected"),
    [
        (None, None, "digits-small"),
        ("photos/", None, "photos-small"),
        (".", None, "here-small"),
        ("../here", None, "here-small"),
        (None, "labels.csv", "here-small"),
        (None, "photos/labels.csv", "photos-small"),
    ],
)
def test_a_run_is_named_after_the_folder(
    folder: str | None, manifest: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_name("auto", folder, manifest, "small") == expected
    assert run_name("mine", folder, manifest, "small") == "mine"


def test_autos_for_digits_and_for_own_images(class_folder: Path) -> None:
    digits = compose()
    assert (digits.data.image_size, digits.data.eval_size, digits.model.weights) == (64, 64, "none")
    assert digits.data.horizontal_flip == "off"
    own = compose(f"data.dir={class_folder}", "limits=off")
    assert (own.data.image_size, own.data.eval_size, own.model.weights) == (224, 256, "imagenet")
    assert own.data.horizontal_flip == "on"
    assert compose("model.name=vit_b_16").data.eval_size == 64  # a position embedding has one size


def test_rates_without_and_with_weights(class_folder: Path) -> None:
    scratch = compose("preset=small", "model.weights=none", "learning_rate=1e-3")
    assert peak_rate(scratch) == pytest.approx(8e-3) and scratch.training.layer_decay == 1.0
    assert peak_rate(compose("preset=small", "model.weights=none", "model.name=vit_b_16")) == 5e-4
    loaded = compose(f"data.dir={class_folder}", "limits=off", "preset=small", "model.weights=imagenet")
    assert peak_rate(loaded) == 5e-4 and loaded.training.layer_decay == LAYER_DECAY
    assert (scratch.training.batchnorm, loaded.training.batchnorm) == ("train", "frozen")
    fast = compose(f"data.dir={class_folder}", "limits=off", "model.weights=imagenet", "learning_rate=2e-3")
    assert fast.training.batchnorm == "train"
    given = compose("training.scratch_rate_factor=2", "training.layer_decay=1", "model.weights=none")
    assert peak_rate(given) == 2 * given.learning_rate and given.training.layer_decay == 1


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        (["0", "1", "2"], True),
        (["a", "b"], True),
        (["turn_left", "turn_right"], True),
        (["cat", "dog"], False),
        (["bright", "lefty"], False),
    ],
)
def test_mirror_changes_label(names: list[str], changes: bool) -> None:
    assert mirror_changes_label(names) is changes


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batchsize=3", "batchsize is not a setting; did you mean batch_size"),
        ("image_size=96", "did you mean data.image_size"),
        ("trainer.acelerator=gpu", "did you mean trainer.accelerator"),
        ("zzz=1", "--help lists them all"),
        ("batch_size=abc", "batch_size=abc has the wrong type; give a whole number"),
        ("epochs=2.5", "epochs=2.5 has the wrong type; give a whole number"),
        ("data.image_size=big", "whole number or auto"),
        ("log.tensorboard=perhaps", "true or false"),
        ("batch_size=128", "outside 8 to 64"),
        ("preset=huge", "use one of: auto, large, medium, small"),
        ("example=phone", "use one of: cloud_service, edge_device, mobile_app"),
        ("trainer.max_epochs=3", "use epochs instead"),
        ("batch_size", "write key=value"),
        ("data.horizontal_flip=true", "auto, on, off"),
        ("data.dir=/nowhere/at/all", "/nowhere/at/all"),
        ("resume=nowhere", "not a run folder"),
        ("data.dir=", "data.dir is empty"),
        ("resume=", "resume is empty"),
        ("batch_size=1", "impossible"),
    ],
)
def test_each_mistake_is_one_sentence(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")) as caught:
        compose(override)
    assert "\n" not in str(caught.value)


def test_trainer_arguments_are_lightnings() -> None:
    from lightning import Trainer

    assert set(trainer_arguments()) == set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert set(OWNED_TRAINER_ARGUMENTS) <= set(trainer_arguments())


def test_trainer_arguments_pass_through() -> None:
    assert compose("trainer.max_steps=3", "trainer.gradient_clip_val=1.0").trainer == {
        "accelerator": "auto",
        "devices": 1,
        "precision": "auto",
        "max_steps": 3,
        "gradient_clip_val": 1.0,
    }


def test_pages_hold_numbers_not_classes() -> None:
    for page in conf_dir().rglob("*.yaml"):
        assert "_target_" not in page.read_text(encoding="utf-8"), page


def test_resume_takes_the_stored_settings_and_nothing_else(tmp_path: Path) -> None:
    stored = compose("preset=small", "seed=7")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(stored)), encoding="utf-8")
    config = compose(f"resume={tmp_path}")
    assert (config.seed, config.epochs, config.resume) == (7, 30, str(tmp_path))
    with pytest.raises(UserError, match="remove seed=8"):
        compose(f"resume={tmp_path}", "seed=8")
    elsewhere = compose(f"resume={tmp_path}", "trainer.accelerator=cpu", "data.workers=2")
    assert (elsewhere.trainer["accelerator"], elsewhere.data.workers, elsewhere.seed) == ("cpu", 2, 7)
    before = to_dict(stored)
    del before["training"]["frozen_layers"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before), encoding="utf-8")
    assert compose(f"resume={tmp_path}").training.frozen_layers == 0
    (tmp_path / "checkpoint").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a run folder"):
        compose(f"resume={tmp_path / 'checkpoint'}")


def test_compose_inside_a_hydra_job_leaves_hydra_as_it_was() -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        compose("seed=3")
        assert GlobalHydra.instance().hydra is outer
        assert hydra_compose("config").seed == 0


def test_image_size_is_the_networks_own(class_folder: Path) -> None:
    config = compose(f"data.dir={class_folder}", "limits=off", "model.name=efficientnet_b3")
    assert (config.data.image_size, config.data.eval_size) == (300, 320)
    with pytest.raises(UserError, match="multiple of 16"):
        compose("model.name=vit_b_16", "data.image_size=100")


@pytest.mark.parametrize("content", [b"", b"3", b"training: 3", b"data: [", b"\xff\xfe"])
def test_settings_that_are_none_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match="does not hold the settings of a run"):
        compose(f"resume={tmp_path}")


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"batch": 3}), encoding="utf-8")
    with pytest.raises(UserError, match="do not fit this version"):
        compose(f"resume={tmp_path}")


def test_the_readmes_table_is_the_presets() -> None:
    lines = (conf_dir().parent / "README.md").read_text(encoding="utf-8").splitlines()
    for name, (batch, epochs, rate, dropout, augmentation) in PRESETS.items():
        (row,) = (line for line in lines if line.startswith(f"| `{name}`"))
        cells = [cell.strip() for cell in row.split("|")[3:-1]]
        assert (int(cells[0]), int(cells[1]), float(cells[2]), float(cells[3]), cells[4]) == (
            batch, epochs, rate, dropout, augmentation,
        )  # fmt: skip

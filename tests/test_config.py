"""The vocabulary: defaults and ranges of the card, and sentences for values outside them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from effnet_lit.checks import check
from effnet_lit.config import Config, UserError, from_dict, knobs, preset_for, to_dict

CARD = {  # default, low, high: the card's table
    "batch_size": (32, 8, 64),
    "epochs": (10, 5, 50),
    "learning_rate": (1e-3, 1e-4, 5e-3),
    "dropout_rate": (0.2, 0.0, 0.5),
}


@pytest.mark.parametrize("key", CARD)
def test_defaults_and_ranges_are_the_cards(key: str) -> None:
    default, low, high = CARD[key]
    facts = {name: knob for name, knob, _ in knobs()}[key]
    assert getattr(Config(), key) == default
    assert facts.card is not None
    assert (facts.card.low, facts.card.high) == (low, high)
    for edge in (low, high):
        check(from_dict({key: edge}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 7), ("batch_size", 65), ("epochs", 4), ("learning_rate", 6e-3), ("dropout_rate", 0.6)],
)
def test_outside_a_card_range_is_refused_by_name_and_lifted_by_limits_off(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^{key}={value} is outside .* limits=off\.$"):
        check(from_dict({key: value}))
    check(from_dict({key: value, "limits": "off"}))


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": -1.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"dropout_rate": 1.0},
        {"training": {"weight_decay": -0.1}},
    ],
)
def test_the_impossible_stays_refused_with_limits_off(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match="impossible"):
        check(from_dict(values | {"limits": "off"}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"augmentation": "wild"}, "none, light, standard, heavy"),
        ({"data": {"mean": [0.5]}}, "three numbers"),
        ({"data": {"std": [0.5, 0.5, 0.0]}}, "above 0"),
        ({"data": {"val_fraction": 0.5, "test_fraction": 0.5}}, "leave under 20%"),
        ({"data": {"image_size": "big"}}, "whole number or auto"),
    ],
)
def test_other_mistakes_say_what_to_type(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(from_dict(values))


@pytest.mark.parametrize(
    ("images", "preset"),
    [(500, "small"), (999, "small"), (1000, "medium"), (4999, "medium"), (5000, "large"), (10**6, "large")],
)
def test_preset_for(images: int, preset: str) -> None:
    assert preset_for(images) == preset


def test_dictionaries_carry_everything() -> None:
    config = from_dict({"batch_size": 16, "data": {"image_size": 96}, "trainer": {"max_steps": 3}})
    assert from_dict(to_dict(config)) == config
    assert to_dict(config)["data"]["image_size"] == 96


def test_every_knob_has_a_sentence() -> None:
    for key, facts, _ in knobs():
        assert len(facts.help) > 5, key


def test_config_needs_the_standard_library_only() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); before = set(sys.modules); import effnet_lit.config; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - {'effnet_lit'}; "
        "print(new - set(sys.stdlib_module_names))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )

"""Whether the values of a run are possible, and sensible for this architecture.

Standard library only, as ``config``.
"""

from __future__ import annotations

import re
from typing import Any

from effnet_lit.config import Config, Knob, UserError, knobs, value_of


def check(config: Config) -> None:
    """Raise ``UserError`` for the first value that is impossible, not a choice, or outside a card range."""
    for key, facts, _ in knobs():
        check_value(key, facts, value_of(config, key), card=config.limits == "on")
    if config.data.val_fraction + config.data.test_fraction > 0.8:
        raise UserError("data.val_fraction and data.test_fraction leave under 20% to train on; lower one of them.")
    if config.data.mixup + config.data.cutmix > 1:
        raise UserError(
            "data.mixup and data.cutmix are chances that exclude each other; lower one so that both fit in 1."
        )
    batch, micro = config.batch_size, config.training.micro_batch
    if isinstance(micro, int) and isinstance(batch, int) and batch % micro:
        raise UserError(
            f"training.micro_batch={micro} does not divide batch_size={batch}; use a half or a quarter of it, or auto."
        )
    if config.data.fold is not None:
        fold_of(config.data.fold)
    for key in ("mean", "std"):
        channels = getattr(config.data, key)
        if channels is not None and (len(channels) != 3 or (key == "std" and min(channels) <= 0)):
            raise UserError(f"data.{key}={channels} must be three numbers, one per colour channel (std above 0).")


def fold_of(text: str) -> tuple[int, int]:
    """ "0/5" -> (0, 5): which fold, of how many.

    Raises:
        UserError: it is written otherwise, or there is no such fold.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(text))
    fold, folds = map(int, match.groups()) if match else (0, 0)
    if not (2 <= folds <= 100 and fold < folds):
        raise UserError(f"data.fold={text} is no fold; write which of how many, from 0/5 to 4/5 for five.")
    return fold, folds


def check_value(key: str, facts: Knob, value: Any, card: bool) -> None:
    """Check one value against its choices, its possible range and, where ``card``, its card range."""
    if facts.choices and value not in facts.choices:
        raise UserError(f"{key}={value} is not a choice; use one of: {', '.join(facts.choices)}.")
    if isinstance(value, str) and facts.possible is not None and value != "auto":
        raise UserError(f"{key}={value} has the wrong type; give a whole number or auto.")
    if isinstance(value, str) or value is None:
        return
    if facts.possible is not None and value not in facts.possible:
        raise UserError(f"{key}={value} is impossible; use a value {facts.possible}.")
    if card and facts.card is not None and value not in facts.card:
        low, high = facts.card.low, facts.card.high
        raise UserError(
            f"{key}={value} is outside {low:g} to {high:g} ({facts.card.reason}); "
            f"use a value in that range, or add limits=off."
        )

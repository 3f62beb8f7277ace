"""The doctor's rules on how well was learnt: underfitting, overfitting, rates, loaded weights, steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

from effnet_lit.config import VERY_LARGE_SET, Config, nearest_advised
from effnet_lit.evaluation.advice import Advice, between
from effnet_lit.evaluation.evidence import Evidence
from effnet_lit.evaluation.metrics import wilson_interval

# Shares of what guessing leaves that were learnt of the training images: too little whatever the cause, and too little
# where something else points to a cause.
FITTED, LEARNT = 0.5, 0.8
GAP, UNVARIED_GAP = 0.2, 0.02  # between training and held-out accuracy, with augmentation and without
ROUGH = 0.2  # share of epochs whose validation loss is above that of guessing
FEW_STEPS = 400
TELLING = 0.6  # accuracy of the last layer alone; lower where weights come from other images
USUAL_RATE = Config.learning_rate
RATE_OFF, RATE_FAR_OFF = 4.0, 10.0  # times that
GOOD = 0.99  # held-out accuracy that leaves nothing to gain
STRONGER = {"light": "standard", "standard": "heavy"}


def frozen(seen: Evidence) -> Iterator[Advice]:
    """Only the last layer was trained, and something is left to gain."""
    if seen.config.training.strategy == "probe" and seen.test[2] < GOOD:
        yield Advice(
            "frozen",
            f"Only the last layer was trained: right on {seen.train[0]:.1%} of the training images, {seen.test[0]:.1%} "
            f"of held-out ones ({between(*seen.test[1:])}).",
            "training.strategy=full",
            "what these weights do not see is learnt too, in minutes to hours",
        )


def underfitting(seen: Evidence) -> Iterator[Advice]:
    """The training images themselves were not learnt; why, where something points there."""
    if not undertaught(seen):
        return
    about = f"right on only {seen.train[0]:.1%} of the training images themselves ({between(*seen.train[1:])})"
    twice = nearest_advised("epochs", 2 * seen.config.epochs)
    if seen.steps < FEW_STEPS:
        yield Advice(
            "few_steps",
            f"Underfitting: {about}, after {seen.steps} steps; {FEW_STEPS} and more are usual.",
            more_steps(seen, twice),
            "a model that has learnt its training images; time grows with the steps",
        )
    elif seen.result["images"]["train"] > VERY_LARGE_SET and seen.config.model.name == "efficientnet_b0":
        yield Advice(
            "model_small",
            f"Underfitting: {about}, and there are {seen.result['images']['train']:,} of them.",
            "model.name=efficientnet_b2",
            "more room to learn, about 2.5 times the time (0.39 to 1.0 billion multiplications an image)",
        )
    else:
        yield Advice(
            "underfitting",
            f"Underfitting: {about}.",
            f"epochs={twice:g}" + (" augmentation=light" if seen.config.augmentation == "heavy" else ""),
            "a model that has learnt its training images; twice the time",
        )


def undertaught(seen: Evidence) -> bool:
    """Whether the training images were not learnt, for which after few steps less evidence is asked."""
    least = LEARNT if seen.steps < FEW_STEPS else FITTED
    return seen.fitted[2] < least and seen.config.training.strategy != "probe"


def more_steps(seen: Evidence, least_epochs: float) -> str:
    """What to type for ``FEW_STEPS`` steps, or as many as the advised ranges allow."""
    config, images = seen.config, seen.result["images"]["train"]
    if config.training.early_stopping and len(seen.epochs) < config.epochs:
        return "training.early_stopping=0"
    enough = math.ceil(FEW_STEPS * len(seen.epochs) / max(1, seen.steps))
    epochs = nearest_advised("epochs", max(least_epochs, enough))
    if epochs >= enough:
        return f"epochs={epochs:g}"
    return f"epochs={epochs:g} batch_size=8" if epochs * (images // 8) > seen.steps else "add images"


def distant_weights(seen: Evidence) -> Iterator[Advice]:
    """Loaded weights that tell little of these images, moved at the low rates that suit weights which tell much."""
    preview, config = seen.result.get("preview"), seen.config
    if preview is None or config.training.strategy == "probe" or config.training.layer_decay == 1:
        return
    low, high = preview["interval"]
    if high < TELLING and seen.fitted[2] < LEARNT:
        yield Advice(
            "distant_weights",
            f"The loaded weights tell little of your images: with the last layer alone {preview['accuracy']:.1%} right "
            f"({between(low, high)}), at the end {seen.train[0]:.1%} of the training images.",
            "learning_rate=4e-3 training.layer_decay=1",
            "weights that may move as far as random ones; 29% right became 72% where this was measured",
        )


def forgetting(seen: Evidence) -> Iterator[Advice]:
    """Loaded weights knew more of these images before they were moved."""
    preview, after = seen.result.get("preview"), seen.result["val"]
    if preview is None or seen.config.training.strategy == "probe":
        return
    low, high = after["accuracy_ci95"]
    if high < preview["accuracy"]:
        moved = seen.config.training.batchnorm == "train"
        yield Advice(
            "forgetting",
            f"Training undid what the loaded weights knew: {after['accuracy']:.1%} right on the validation images "
            f"({between(low, high)}), with the last layer alone {preview['accuracy']:.1%}.",
            "training.batchnorm=frozen" if moved else "training.strategy=probe",
            "BatchNorm's statistics stay as they were" if moved else "that accuracy, in seconds",
        )


def unusual_rate(seen: Evidence) -> Iterator[Advice]:
    """A learning rate far from the usual one, where the model is not good all the same."""
    times = seen.config.learning_rate / USUAL_RATE
    off = max(times, 1 / times)
    poor = (off > RATE_OFF and seen.fitted[2] < FITTED) or (off >= RATE_FAR_OFF and seen.test[2] < GOOD)
    if poor and seen.config.training.strategy == "full":
        high = times > 1
        yield Advice(
            "rate_high" if high else "rate_low",
            f"Learning rate too {'high' if high else 'low'}: {seen.config.learning_rate:g} is {off:.0f} times "
            f"{'above' if high else 'below'} the usual {USUAL_RATE:g}; right on {seen.train[0]:.1%} of the "
            f"training images, {seen.test[0]:.1%} of held-out ones ({between(*seen.test[1:])}).",
            f"learning_rate={USUAL_RATE:g}",
            "the accuracy in the preset's header",
        )


def diverged(seen: Evidence) -> Iterator[Advice]:
    """A loss that is no number any more: nothing that follows can mend it."""
    if seen.epochs and not all(math.isfinite(loss) for loss in seen.epochs[-1].values()):
        rate = seen.config.learning_rate
        lower = USUAL_RATE if rate > USUAL_RATE else rate / 10
        yield Advice(
            "rate_high",
            f"Learning rate too high: the loss is not a number after epoch {len(seen.epochs)}; Ctrl-C saves your time.",
            f"learning_rate={lower:g}",
            "a run that ends in a model",
        )


def rough(seen: Evidence) -> Iterator[Advice]:
    """Validation loss above that of guessing again and again, and the training images not learnt either."""
    losses = [row["val/loss"] for row in seen.epochs if "val/loss" in row][1:]
    guessing = math.log(seen.classes)
    above = sum(not loss < guessing for loss in losses)
    low, high = wilson_interval(above, len(losses))
    rate, usual = seen.config.learning_rate, USUAL_RATE
    if len(losses) >= 4 and low > ROUGH / 2 and above / len(losses) > ROUGH and rate >= usual and not learnt(seen):
        lower = usual if rate > usual else usual / 3
        yield Advice(
            "rate_high",
            f"Learning rate too high: after {above} of {len(losses)} epochs ({between(low, high)}) the model was worse "
            f"than guessing on validation images.",
            f"learning_rate={lower:.1g}",
            "a steady descent; the accuracy in the preset's header",
        )


def learnt(seen: Evidence) -> bool:
    """Whether the training images are; before the end by their loss, which smoothed labels keep above zero."""
    if "training_sample" in seen.result:
        return seen.fitted[2] >= LEARNT
    return seen.epochs[-1].get("train/loss", math.inf) < math.log(seen.classes) / 2


def overfitting(seen: Evidence) -> Iterator[Advice]:
    """Much better on training images than on new ones."""
    gap, low, high = seen.gap
    config, images = seen.config, seen.result["images"]["train"]
    unvaried = config.augmentation == "none"
    if low <= (UNVARIED_GAP if unvaried else GAP):  # the cheaper the remedy, the smaller a gap is worth telling
        return
    if unvaried:
        override = "augmentation=light"
    elif config.model.weights == "none":
        override = "model.weights=imagenet"
    elif stronger := STRONGER.get(config.augmentation):
        override = f"augmentation={stronger}"
    else:
        override = f"dropout_rate={min(0.5, config.dropout_rate + 0.1):g} training.weight_decay=0.1"
    yield Advice(
        "overfitting",
        f"Overfitting: {seen.train[0]:.1%} on training images, {seen.test[0]:.1%} on held-out ones, "
        f"{100 * gap:.0f} points apart ({100 * low:.0f} to {100 * high:.0f}).",
        override,
        f"a smaller gap; the surest help are more images than these {images:,}",
    )


def wrong_preset(seen: Evidence) -> Iterator[Advice]:
    """Settings for another size of data, where the model also shows it."""
    images, config = seen.result["images"]["train"], seen.config
    if images > 10_000 and config.augmentation == "heavy" and seen.fitted[2] < 0.97:
        yield Advice(
            "wrong_preset",
            f"Settings for a small set: heavy augmentation on {images:,} images, and only {seen.train[0]:.1%} of them "
            f"learnt ({between(*seen.train[1:])}).",
            "preset=auto",
            "the accuracy in the preset's header, in half the time",
        )

"""Why a run is slow, weak or too good to be true, and what to type next. Silent where the evidence is weak.

The thresholds were chosen on runs with the embedded digits; ``benchmarks/doctor.py`` scores them on other images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from effnet_lit.config import VERY_LARGE_SET, Config, nearest_advised
from effnet_lit.evaluation.evidence import Evidence, Share
from effnet_lit.evaluation.metrics import wilson_interval

WAITING = 0.15  # share of the training time
LONG_SECONDS = 1800.0
# Shares of what guessing leaves that were learnt of the training images: too little whatever the cause, and too little
# where something else points to a cause.
FITTED, LEARNT = 0.5, 0.8
GAP, UNVARIED_GAP = 0.2, 0.02  # between training and held-out accuracy, with augmentation and without
NOISE = 0.1  # share of training images that the model contradicts though it was taught their label
RARE_IMAGES = 50  # of a class, to train on
UNEVEN = 4.0  # times the images of a rare class
LEAK = 0.02  # share of held-out images with a copy in training
ROUGH = 0.2  # share of epochs whose validation loss is above that of guessing
EDGE, UNUSED = 0.92, 0.3  # shares of the device's memory
FEW_STEPS = 400
TELLING = 0.6  # accuracy of the last layer alone; lower where weights come from other images
USUAL_RATE = Config.learning_rate
RATE_OFF, RATE_FAR_OFF = 4.0, 10.0  # times that
GOOD = 0.99  # held-out accuracy that leaves nothing to gain
STRONGER = {"light": "standard", "standard": "heavy"}


class Advice(NamedTuple):
    """One diagnosis: what was seen, what to type, what that is worth. ``kind`` names the rule."""

    kind: str
    evidence: str
    override: str
    gain: str

    def lines(self) -> str:
        """For the screen."""
        return f"{self.evidence}\n         Try      {self.override}\n         Expect   {self.gain}"


def diagnose(seen: Evidence, rules: Sequence[Rule] | None = None) -> list[Advice]:
    """What every rule with strong evidence says, the most urgent first, one of each kind; ``rules`` are all unless
    given."""
    found: dict[str, Advice] = {}
    for rule in rules or RULES:
        for advice in rule(seen):
            found.setdefault(advice.kind, advice)
    hidden = {other for kind in found for other in EXPLAINS.get(kind, ())}
    return [advice for advice in found.values() if advice.kind not in hidden]


def leakage(seen: Evidence) -> Iterator[Advice]:
    """Copies of held-out images in training, or a figure that is reached too early."""
    images = seen.result["test"]["images"]
    copies = seen.result["copies_held_out"]
    share, low, high = (copies["images"] / images, *wilson_interval(copies["images"], images))
    if low > LEAK:
        others = images - copies["images"]
        right = round(seen.test[0] * images) - copies["right"]
        honest = f"{right / others:.1%} ({between(*wilson_interval(right, others))})" if others else "unknown"
        yield Advice(
            "leakage",
            f"Leakage: {share:.1%} of the held-out images ({between(low, high)}) look like one to train on, so "
            f"{seen.test[0]:.1%} is too good.",
            "data.near_duplicates=together data.split=null",
            f"an honest figure; on the held-out images without such a copy it is {honest}",
        )


def label_noise(seen: Evidence) -> Iterator[Advice]:
    """Training images that the model contradicts though it was taught their label, and for long enough."""
    if undertaught(seen) and seen.steps < FEW_STEPS:
        return
    sample = seen.result["training_sample"]
    share, low, high = (
        sample["contradicted"] / sample["images"],
        *wilson_interval(sample["contradicted"], sample["images"]),
    )
    if low > NOISE:
        yield Advice(
            "label_noise",
            f"Wrong labels: the model is sure of another class for {share:.0%} of the training images "
            f"({between(low, high)}), though it was taught theirs.",
            "data.fold=0/5",
            "a list of them in audit.html, 1/5 to 4/5 list the rest; mended, up to as many points as that share",
        )


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


def rare_classes(seen: Evidence) -> Iterator[Advice]:
    """Classes with few training images that are found less often than the others, beyond chance."""
    counts, per_class = seen.result["training_images"], seen.result["test"]["per_class"]
    most = max(counts.values())
    for kind, names in (
        ("few_images", [name for name in counts if counts[name] < RARE_IMAGES and counts[name] * UNEVEN / 2 <= most]),
        ("imbalance", [name for name in counts if counts[name] * UNEVEN <= most]),
    ):
        here, there = pooled(per_class, names), pooled(per_class, [name for name in counts if name not in names])
        if not names or here[2] >= there[1]:
            continue
        listed = ", ".join(f"'{name}' ({counts[name]})" for name in sorted(names, key=lambda name: counts[name])[:4])
        uneven = kind == "imbalance" and seen.config.data.balance == "none"
        yield Advice(
            kind,
            f"{'Uneven classes' if kind == 'imbalance' else 'Too few images'}: {here[0]:.0%} found of the classes with "
            f"few training images ({between(*here[1:])}), {there[0]:.0%} of the others: {listed}.",
            "data.balance=loss" if uneven else f"add images of {listed} until each has {RARE_IMAGES} or more",
            "more of the rare ones found, a few false alarms among the others" if uneven else "as the other classes",
        )


def mirrored(seen: Evidence) -> Iterator[Advice]:
    """Two classes that are each other's mirror image, taken for each other while training mirrors its images."""
    for pair in seen.result["mirror_pairs"]:
        low, high = wilson_interval(pair["taken"], pair["images"])
        if low > 0.1:
            a, b = pair["classes"]
            yield Advice(
                "label_changing_augmentation",
                f"Mirroring changes the class: {pair['taken'] / pair['images']:.0%} of '{a}' and '{b}' "
                f"({between(low, high)}) are taken for each other, and the mirrored images of one look like the other.",
                "data.horizontal_flip=off",
                "the two are told apart again",
            )


def slow(seen: Evidence) -> Iterator[Advice]:
    """Steps wait for images, or computing takes long."""
    share, seconds = seen.result["data_wait_share"], seen.result["seconds_training"]
    shares = seen.result["data_wait_by_epoch"] or [share]
    data = seen.config.data
    if share > WAITING and min(shares) > WAITING / 2:
        override = "data.cache=disk" if data.cache == "off" else f"data.workers={max(4, 2 * int(data.workers))}"
        yield Advice(
            "data_slow",
            f"Slow because of data: steps waited for images for {share:.0%} of the time "
            f"({between(min(shares), max(shares))} from epoch to epoch).",
            override,
            f"at most {1 / (1 - share):.1f} times as fast",
        )
    elif seconds > LONG_SECONDS and isinstance(data.image_size, int) and data.image_size > 128:
        smaller = max(128, 32 * round(data.image_size * 0.7 / 32))
        yield Advice(
            "compute_slow",
            f"Slow because of computing: {1 - share:.0%} of {seconds / 60:.0f} minutes, {share:.0%} waited for images.",
            f"data.image_size={smaller}",
            f"about {(data.image_size / smaller) ** 2:.1f} times as fast; small details are lost",
        )


def memory(seen: Evidence) -> Iterator[Advice]:
    """The device's memory is nearly full, or most of it is idle while the step was cut up to save it."""
    total = seen.result["device_memory_bytes"]
    peak = seen.result["gpu_peak_memory_bytes"] or seen.result["peak_memory_bytes"]
    if not total or not peak:
        return
    share, training = peak / total, seen.config.training
    if share > EDGE:
        yield Advice(
            "memory_edge",
            f"Memory near the edge: {peak / 1e9:.1f} of {total / 1e9:.1f} GB ({share:.0%}).",
            "model.gradient_checkpointing=blocks",
            "room for other programs; on a CPU a fifth slower",
        )
    elif share < UNUSED and training.micro_batch != seen.config.batch_size:
        yield Advice(
            "memory_idle",
            f"Memory badly used: {peak / 1e9:.1f} of {total / 1e9:.1f} GB ({share:.0%}), {training.micro_batch} images "
            "at once.",
            f"training.micro_batch={seen.config.batch_size}",
            "fewer, larger steps of the device",
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


Rule = Callable[[Evidence], Iterator[Advice]]
RULES: tuple[Rule, ...] = (
    leakage, label_noise, unusual_rate, frozen, distant_weights, underfitting, rough, overfitting, rare_classes,
    mirrored, slow, memory, wrong_preset,
)  # fmt: skip
WHILE_TRAINING: tuple[Rule, ...] = (diverged, rough, slow)  # their evidence is there before the end
EXPLAINS = {
    "label_noise": ("underfitting", "overfitting"),
    "rate_high": ("few_steps", "underfitting", "overfitting"),
    "rate_low": ("few_steps", "underfitting"),
    "few_images": ("imbalance",),
    "frozen": ("overfitting",),
    "distant_weights": ("underfitting", "few_steps", "overfitting"),
}


def pooled(per_class: Mapping[str, Any], names: Sequence[str]) -> Share:
    """Share found of several classes' held-out images."""
    images = sum(per_class[name]["images"] for name in names)
    right = sum(round(per_class[name]["recall"] * per_class[name]["images"]) for name in names)
    return (right / max(1, images), *wilson_interval(right, images))


def between(low: float, high: float) -> str:
    """An interval of shares, as people read it."""
    return f"{low:.0%} to {high:.0%}"

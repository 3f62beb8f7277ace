"""The doctor's rules on the images: copies, wrong labels, rare classes, mirrored ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from effnet_lit.evaluation.advice import Advice, between
from effnet_lit.evaluation.evidence import Evidence, Share
from effnet_lit.evaluation.metrics import wilson_interval
from effnet_lit.evaluation.rules_learning import FEW_STEPS, undertaught

NOISE = 0.1  # share of training images that the model contradicts though it was taught their label
RARE_IMAGES = 50  # of a class, to train on
UNEVEN = 4.0  # times the images of a rare class
LEAK = 0.02  # share of held-out images with a copy in training


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


def pooled(per_class: Mapping[str, Any], names: Sequence[str]) -> Share:
    """Share found of several classes' held-out images."""
    images = sum(per_class[name]["images"] for name in names)
    right = sum(round(per_class[name]["recall"] * per_class[name]["images"]) for name in names)
    return (right / max(1, images), *wilson_interval(right, images))


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

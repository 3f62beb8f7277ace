"""Why a run is slow, weak or too good to be true, and what to type next. Silent where the evidence is weak.

The thresholds of the rules were chosen on runs with the embedded digits; ``benchmarks/doctor.py`` scores them on other
images.
"""

from __future__ import annotations

from collections.abc import Sequence

from effnet_lit.evaluation.advice import Advice, Rule
from effnet_lit.evaluation.evidence import Evidence
from effnet_lit.evaluation.rules_images import label_noise, leakage, mirrored, rare_classes
from effnet_lit.evaluation.rules_learning import (
    distant_weights,
    diverged,
    forgetting,
    frozen,
    overfitting,
    rough,
    underfitting,
    unusual_rate,
    wrong_preset,
)
from effnet_lit.evaluation.rules_machine import memory, slow

RULES: tuple[Rule, ...] = (
    leakage, label_noise, unusual_rate, frozen, distant_weights, forgetting, underfitting, rough, overfitting,
    rare_classes, mirrored, slow, memory, wrong_preset,
)  # fmt: skip
WHILE_TRAINING: tuple[Rule, ...] = (diverged, rough, slow)  # their evidence is there before the end
EXPLAINS = {
    "label_noise": ("underfitting", "overfitting"),
    "rate_high": ("few_steps", "underfitting", "overfitting"),
    "rate_low": ("few_steps", "underfitting"),
    "few_images": ("imbalance",),
    "frozen": ("overfitting",),
    "distant_weights": ("forgetting", "underfitting", "few_steps", "overfitting"),
    "forgetting": ("underfitting", "overfitting"),
}


def diagnose(seen: Evidence, rules: Sequence[Rule] | None = None) -> list[Advice]:
    """What every rule with strong evidence says, the most urgent first, one of each kind; ``rules`` are all unless
    given."""
    found: dict[str, Advice] = {}
    for rule in rules or RULES:
        for advice in rule(seen):
            found.setdefault(advice.kind, advice)
    hidden = {other for kind in found for other in EXPLAINS.get(kind, ())}
    return [advice for advice in found.values() if advice.kind not in hidden]

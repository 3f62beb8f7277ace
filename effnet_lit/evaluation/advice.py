"""What the doctor may say, and the form of a rule that says it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from effnet_lit.evaluation.evidence import Evidence


class Advice(NamedTuple):
    """One diagnosis: what was seen, what to type, what that is worth. ``kind`` names the rule."""

    kind: str
    evidence: str
    override: str
    gain: str

    def lines(self) -> str:
        """For the screen."""
        return f"{self.evidence}\n         Try      {self.override}\n         Expect   {self.gain}"


Rule = Callable[[Evidence], Iterator[Advice]]


def between(low: float, high: float) -> str:
    """An interval of shares, as people read it."""
    return f"{low:.0%} to {high:.0%}"

"""Fonts of this machine for letters that matplotlib's own font lacks."""

from __future__ import annotations

from functools import cache

from matplotlib import rcParams
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font


def fonts_for(text: str) -> list[str]:
    """Names of fonts for ``rcParams["font.family"]``: the usual ones, then those that have what is still missing."""
    chosen = list(rcParams["font.family"])
    missing = set(map(ord, text)) - letters_of(findfont(FontProperties()))
    for font in fontManager.ttflist:
        if not missing:
            break
        if "lastresort" not in font.name.lower().replace(" ", "") and missing & (found := letters_of(font.fname)):
            chosen.append(font.name)
            missing -= found
    return chosen


@cache
def letters_of(path: str) -> frozenset[int]:
    """Code points that a font file has; none where it cannot be read."""
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # of a colour font, or since removed
        return frozenset()

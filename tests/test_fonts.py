"""Names of classes in letters that matplotlib's own font lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image

from effnet_lit.evaluation.fonts import fonts_for
from effnet_lit.evaluation.plots import plot_confusion_matrix

LETTER = "\N{CJK UNIFIED IDEOGRAPH-732B}"  # a cat


@pytest.fixture
def font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font with this one letter, a black square, as if it were installed here, and no other that has it."""
    pen = TTGlyphPen(None)
    for i, corner in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if i else pen.moveTo)(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(LETTER): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Only A Cat", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cat.ttf")
    own = [entry for entry in fontManager.ttflist if entry.name.startswith("DejaVu")]
    monkeypatch.setattr(fontManager, "ttflist", own)
    fontManager.addfont(tmp_path / "cat.ttf")
    return "Only A Cat"


def test_a_font_is_found_where_it_is_needed(font: str) -> None:
    assert font not in fonts_for("dog")
    assert fonts_for(f"dog {LETTER}")[-1] == font
    assert fonts_for("\N{CJK UNIFIED IDEOGRAPH-72AC}")[-1] != font  # nobody has a dog


def test_the_letter_is_drawn(font: str, tmp_path: Path) -> None:
    def darkness(name: str) -> float:
        plot_confusion_matrix([[1]], [name], tmp_path / "matrix.png")
        return float((np.asarray(Image.open(tmp_path / "matrix.png").convert("L")) < 50).sum())

    missing = darkness("\N{CJK UNIFIED IDEOGRAPH-72AC}" * 9)
    assert darkness(LETTER * 9) > missing + 1000  # squares in place of hollow boxes

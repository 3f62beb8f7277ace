"""The report of a run: complete, self-contained, harmless whatever the names, rebuilt and compared."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from effnet_lit import compose, fit
from effnet_lit.cli import app
from effnet_lit.config import Config, from_dict, to_dict
from effnet_lit.evaluation.charts import Axis, Line, chart, ticks
from effnet_lit.evaluation.compare import compare, mcnemar
from effnet_lit.evaluation.report import Answer, command, plain

TINY = ("limits=off", "epochs=2", "batch_size=16", "data.image_size=32", "model.weights=none", "seed=3")
NASTY = "<b onclick=alert(1)>&\"'"


@pytest.fixture(scope="module")
def run_dir(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on three classes, one with a name that is markup."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    shutil.copytree(class_folder, folder)
    (folder / "red").rename(folder / NASTY)
    return fit(compose(f"data.dir={folder}", *TINY), tmp_path_factory.mktemp("runs") / "run").run_dir


class Page(HTMLParser):
    """Tags, their links, and what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attrs), tag
        if tag not in ("meta", "img", "rect", "path", "circle", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.links and all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "script" not in page.tags and "link" not in page.tags and "b onclick" not in page.tags
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert len(text) < 5_000_000


def test_figures_are_the_results(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    assert f"{result['test']['accuracy']:.1%} right on {result['test']['images']} images it never saw" in text
    for name, row in result["test"]["per_class"].items():
        assert name == NASTY or f"<bdi>{name}</bdi></th><td>{row['images']}</td><td>{row['recall']:.1%}" in text
    counts = re.findall(r"<td style=[^>]*>(\d*)</td>", text)
    matrix = np.array([int(count or 0) for count in counts]).reshape(3, 3)
    assert matrix.tolist() == result["test"]["confusion_matrix"]
    card = (run_dir / "report.md").read_text(encoding="utf-8")
    assert f"Accuracy {result['test']['accuracy']:.1%}" in card
    assert "<b onclick" not in card.replace("\\<", "")


def test_the_command_trains_the_same(run_dir: Path) -> None:
    text = (run_dir / "report.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("python train.py "))
    import shlex

    import yaml

    again = compose(*shlex.split(line)[2:])
    stored = from_dict(yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
    again.name = stored.name
    differing = {key for key, value in flat(to_dict(stored)).items() if flat(to_dict(again)).get(key) != value}
    assert differing <= {"trainer.accelerator", "trainer.precision", "data.workers", "data.cache"}, differing


def flat(values: dict, prefix: str = "") -> dict:  # type: ignore[type-arg]
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_names_that_could_be_grammar() -> None:
    config = Config()
    config.data.dir = "my photos/o'clock, [1]=2"
    assert compose_words(command(config))["data.dir"] == config.data.dir


def compose_words(line: str) -> dict[str, str]:
    """What Hydra reads of each word."""
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = [OverridesParser.create().parse_override(word) for word in shlex.split(line)[2:]]
    return {one.key_or_group: one.value() for one in parsed}  # type: ignore[misc]


def test_rebuilt_from_the_folder_alone(run_dir: Path) -> None:
    before = (run_dir / "report.html").read_text(encoding="utf-8")
    (run_dir / "report.html").unlink()
    done = CliRunner().invoke(app, ["report", str(run_dir)])
    assert done.exit_code == 0, done.output
    assert (run_dir / "report.html").read_text(encoding="utf-8") == before


def test_without_its_images(run_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    page = (copy / "config.yaml").read_text(encoding="utf-8")
    (copy / "config.yaml").write_text(re.sub(r"(?m)^  dir: .*$", "  dir: /nowhere", page), encoding="utf-8")
    done = CliRunner().invoke(app, ["report", str(copy)])
    assert done.exit_code == 0 and "cannot be shown" in done.output
    assert "cannot be shown" in (copy / "report.html").read_text(encoding="utf-8")


def test_two_runs(run_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    done = CliRunner().invoke(app, ["report", str(run_dir), str(copy)])
    assert "no difference beyond chance (p = 1)" in done.output
    assert "learning_rate" not in done.output, "what is the same in both is not told"
    page = (copy / "config.yaml").read_text(encoding="utf-8")
    (copy / "config.yaml").write_text(page.replace("seed: 3", "seed: 7"), encoding="utf-8")
    rows = CliRunner().invoke(app, ["report", str(run_dir), str(copy)]).output.splitlines()
    (seeds,) = (row.split("│")[2:4] for row in rows if "seed" in row)
    assert [seed.strip() for seed in seeds] == ["3", "7"]
    figures = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["test"]
    assert sum(f"{figures['accuracy']:.1%} (" in row for row in rows) == 1
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2 and "not a finished run" in done.output


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 9), (10, 10), (0, 6), (40, 20)])
def test_mcnemar_as_scipy(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_only_common_images_count() -> None:
    def answers(*right: bool) -> list[Answer]:
        return [Answer(f"{i}.png", 0, 0 if hit else 1, 0.9, np.array([0.9, 0.1])) for i, hit in enumerate(right)]

    found = compare(answers(True, True, False, True), answers(True, False, True))
    assert (found.images, found.right, found.alone) == (3, (2, 2), (1, 1))
    assert "no image in common" in compare(answers(), answers(True)).sentence(("a", "b"))
    clear = compare(answers(*[True] * 20), answers(*[False] * 20)).sentence(("a", "b"))
    assert clear.startswith("a 100.0%, b 0.0% on 20 images") and "a is better" in clear


def test_charts_place_their_points() -> None:
    x, y = Axis("x", 0, 10, [0, 10]), Axis("y", 0, 1, [0, 1])
    drawn = str(chart("<title>", x, y, [Line("a", "c0", [(0, 0), (10, 1)])]))
    assert "&lt;title&gt;" in drawn
    assert 'd="M46.0 200.0L400.0 12.0"' in drawn


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 2.3) == [0, 0.5, 1.0, 1.5, 2.0]
    assert ticks(0.83, 1.0) == [0.85, 0.9, 0.95, 1.0]
    assert ticks(3, 3) == [3]


def test_names_stay_text_in_markdown() -> None:
    assert plain("a|b\n# c") == "a\\|b \\# c"

"""The page of the audit: complete, safe against hostile names, small, and readable on a phone."""

from __future__ import annotations

import base64
import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effnet_lit.data import audit_page
from effnet_lit.data.audit_page import Picture, write_audit_page

RED = (210, 40, 50)
BROWSER = next(filter(None, map(shutil.which, ("google-chrome", "google-chrome-stable", "chromium"))), None)
HOSTILE = [
    "<script>alert(1)</script>.jpg",
    '" onload="alert(1)" x="',
    "'><img src=x onerror=alert(1)>",
    "</style></svg></details><u>",
    "&lt;b&gt; &amp;amp;",
    "{{ 7 * 7 }}{% raw %}",
    "猫 ein schönes Bild \u202egpj.exe",
    "x" * 250,
]


def finding(severity: str, items: list[dict[str, Any]], **other: Any) -> dict[str, Any]:
    """A finding of a kind that the page cannot know."""
    known = {"kind": "of_tomorrow", "title": f"A {severity}", "next": "Do this.", "count": len(items)}
    return known | {"severity": severity, "items": items} | other


def item(*paths: str, detail: str = "") -> dict[str, Any]:
    return {"paths": list(paths), "detail": detail}


def audit(*findings: dict[str, Any], **other: Any) -> dict[str, Any]:
    """What the audit says of 2,527 images in two classes."""
    classes = {"cat": {"train": 700, "val": 100, "test": 200}, "dog": {"train": 1000, "val": 150, "test": 365}}
    whole = {
        "format": 2,
        "data_dir": "/home/u/photos",
        "images": {"found": 2527, "used": 2515, "left_out": 12},
        "classes": classes,
        "parts": {"train": 1700, "val": 250, "test": 565},
        "findings": list(findings),
        "exclude": [],
        "ignored": [],
    }
    return whole | other


def red(path: str) -> Picture:
    return Picture(np.full((64, 64, 3), RED, np.uint8), 640, 480)


class Reader(HTMLParser):
    """Tags, attributes and the text of each <bdi>, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.names: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "bdi":
            self.names.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "bdi":
            self.names[-1] += data
        if self.inside != "style":
            self.text += data


def written(tmp_path: Path, content: dict[str, Any], picture: Any = red) -> str:
    path = tmp_path / "audit.html"
    write_audit_page(path, content, picture)
    assert list(tmp_path.iterdir()) == [path]
    return path.read_text(encoding="utf-8")


def images(page: str) -> list[Image.Image]:
    encoded = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(BytesIO(base64.b64decode(content, validate=True))) for content in encoded]


def test_what_needs_a_person_is_open_and_the_rest_is_folded(tmp_path: Path) -> None:
    page = written(
        tmp_path,
        audit(
            finding("error", [item("cat/1.jpg", "dog/9.jpg", detail="cat, dog")], title="Same pixels", count=2),
            finding("warning", [item(detail="cat 1,000 images, dog 1,515")], next="Collect cats."),
            finding("note", [item("cat/2.jpg", detail="sharpness 0.02")], count=1234),
            exclude=["cat/1.jpg"],
            ignored=[{"path": "notes.txt", "reason": "not an image"}],
        ),
    )
    reader = Reader(page)
    for text in ("2,527 images found, 2,515 used.", "2 findings need you.", "Same pixels", "Collect cats.", "1,234"):
        assert text in reader.text
    assert [("open" in attributes) for tag, attributes in reader.tags if tag == "details"] == [True, True, *[False] * 3]
    assert reader.names == [
        *("/home/u/photos", "dog", "cat"),  # the largest class first
        *("cat/1.jpg", "dog/9.jpg", "cat, dog", "cat 1,000 images, dog 1,515", "cat/2.jpg", "sharpness 0.02"),
        *("cat/1.jpg", "notes.txt"),
    ]


@pytest.mark.parametrize(
    ("severities", "used", "expected"),
    [
        ([], 2527, "2,527 images found, all used. Nothing to do."),
        (["note"], 2515, "2,527 images found, 2,515 used. Nothing to do."),
        (["warning", "note"], 2515, "2,527 images found, 2,515 used. 1 finding needs you."),
        (["error", "warning"], 2515, "2,527 images found, 2,515 used. 2 findings need you."),
    ],
)
def test_verdict(tmp_path: Path, severities: list[str], used: int, expected: str) -> None:
    content = audit(*[finding(severity, [item("a.jpg")]) for severity in severities])
    content["images"]["used"] = used
    assert expected in Reader(written(tmp_path, content)).text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    content = audit(
        *[finding("error", [item(name, detail=name), item(detail=name)], title=name, next=name) for name in HOSTILE],
        data_dir=HOSTILE[0],
        classes={name: {"train": 1, "val": 0, "test": 0} for name in HOSTILE},
        exclude=HOSTILE,
        ignored=[{"path": name, "reason": name} for name in HOSTILE],
    )
    reader = Reader(written(tmp_path, content))
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "img", "u", "iframe", "link", "object"}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    for name in HOSTILE:  # class, path and detail and text alone of a finding, left out, ignored
        assert reader.names.count(name) == 6 + (name == content["data_dir"])
        assert reader.text.count(name) >= 9


def test_a_file_name_that_is_not_utf8_is_spelled_out(tmp_path: Path) -> None:
    page = written(tmp_path, audit(finding("error", [item("cat/\udcff.jpg")])))
    assert r"cat/\udcff.jpg" in Reader(page).names


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = written(tmp_path, audit(finding("error", [item("a.jpg")])))
    links = [attributes["href"] for _, attributes in Reader(page).tags if "href" in attributes]
    assert links and all(link and link.startswith(("#", "data:image/jpeg;")) for link in links)
    assert " src=" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|@import|url\(", page)


def test_every_reference_has_its_target(tmp_path: Path) -> None:
    page = written(tmp_path, audit(*[finding(s, [item("a.jpg"), item("b.jpg")]) for s in ("error", "warning", "note")]))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) == set(ids)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (160, 120)), ((300, 3000), (16, 160)), ((16, 16), (160, 160)), ((5000, 2), (160, 1))],
)
def test_thumbnails_have_the_proportions_of_the_original(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = RED
    page = written(tmp_path, audit(finding("note", [item("a.jpg")])), lambda path: Picture(pixels, *size))
    (image,) = images(page)
    assert (image.format, image.size) == ("JPEG", expected)
    assert f"{size[0]:,} \u00d7 {size[1]:,} px" in Reader(page).text
    left, right = np.asarray(image)[0, 0], np.asarray(image)[0, -1]
    assert np.abs(left.astype(int) - RED).max() < 40 and right.max() < 40


def test_an_image_is_asked_for_and_embedded_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def picture(path: str) -> Picture | None:
        asked.append(path)
        return None if path == "broken.jpg" else red(path)

    items = [item("a.jpg", "b.jpg"), item("a.jpg"), item("broken.jpg", detail="truncated"), item("b.jpg", "broken.jpg")]
    page = written(tmp_path, audit(*[finding(severity, items) for severity in ("error", "warning", "note")]), picture)
    assert sorted(asked) == ["a.jpg", "b.jpg", "broken.jpg"]
    assert len(images(page)) == 2
    assert Reader(page).names.count("broken.jpg") == 6
    assert page.count("cannot be shown") == 3  # beside one that can; alone it is a line of text


def test_long_findings_are_cut_and_say_so(tmp_path: Path) -> None:
    copies = item(*[f"copy/{i}.jpg" for i in range(400)], detail="400 copies")
    many = [item(f"many/{i}.jpg") for i in range(340)]
    page = written(
        tmp_path,
        audit(finding("note", [copies]), finding("note", many), exclude=[f"out/{i}.jpg" for i in range(2000)]),
    )
    reader = Reader(page)
    assert "24 of 340 shown, all in audit.json" in reader.text
    assert "500 of 2,000 shown, all in audit.json" in reader.text
    assert "and 396 more" in reader.text
    shown = [sum(name.startswith(kind) for name in reader.names) for kind in ("copy/", "many/", "out/")]
    assert shown == [4, 24, 500]
    assert len(images(page)) == 28


def test_the_worst_case_stays_under_three_megabytes(tmp_path: Path) -> None:
    """1,800 images of noise, which no JPEG makes small."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    paths = iter([f"a/folder/with/a/fairly/long/name/as/people/have/them/{i}.jpg" for i in range(1800)])
    findings = [
        finding("warning", [item(next(paths), next(paths), next(paths), detail="cat, dog") for _ in range(24)])
        for _ in range(25)
    ]
    page = written(tmp_path, audit(*findings), lambda path: Picture(noise, 640, 480))
    assert len(images(page)) == 1800
    assert len(page.encode()) < 3_000_000


def test_few_images_keep_their_quality() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    fine, coarse = (audit_page.jpeg(Picture(pixels, 640, 480), budget) for budget in (100_000, 2_000))
    assert Image.open(BytesIO(fine)).size == (160, 120)
    assert len(coarse) <= 2_000 < len(fine)


def test_many_classes_are_folded_and_parts_may_be_empty(tmp_path: Path) -> None:
    classes = {f"class {i}": {"train": 3 * i, "test": i} for i in range(200)}
    reader = Reader(written(tmp_path, audit(classes=classes, parts={"train": 59700, "val": 0, "test": 19900})))
    assert [attributes for tag, attributes in reader.tags if tag == "details"] == [{"class": "panel"}]
    assert "200 classes" in reader.text
    assert reader.names[1:] == [f"class {i}" for i in reversed(range(200))]
    widths = [float(attributes["style"][6:-1]) for tag, attributes in reader.tags if tag == "i" and attributes["style"]]
    assert widths[:2] == [75.0, 25.0]
    assert len(widths) == 2 * 199  # none for the empty class, none for the empty part


def test_no_image_at_all(tmp_path: Path) -> None:
    empty = audit(classes={"cat": {"train": 0}}, parts={"train": 0}, images={"found": 0, "used": 0, "left_out": 0})
    assert "0 images found" in Reader(written(tmp_path, empty)).text


def test_a_failure_leaves_the_earlier_page(tmp_path: Path) -> None:
    def fails(path: str) -> Picture:
        raise OSError("disk gone")

    earlier = written(tmp_path, audit())
    with pytest.raises(OSError, match="disk gone"):
        written(tmp_path, audit(finding("error", [item("a.jpg")])), fails)
    assert (tmp_path / "audit.html").read_text(encoding="utf-8") == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["audit.html"]


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, WCAG 2.2."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(scheme: int) -> None:
    template = Path(audit_page.__file__).with_name("audit_page.html.j2").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", template, re.S)[scheme]))
    text = [(name, ground) for name in ("ink", "quiet", "link") for ground in ("page", "card", "well")]
    for name, ground in [*text, *[(severity, f"{severity}-tint") for severity in audit_page.SEVERITIES]]:
        high, low = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


PHONE = """<!doctype html><meta charset="utf-8">
<iframe style="width: 360px; height: 2000px; border: 0" srcdoc="{}"></iframe>
<script>
onload = () => {{
  const inside = document.querySelector("iframe").contentDocument, window = inside.defaultView
  inside.querySelectorAll("details").forEach(folded => folded.open = true)
  const wider = [...inside.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > window.innerWidth)
  document.title = [window.innerWidth + " wide, shows " + inside.documentElement.scrollWidth,
    ...wider.map(e => e.outerHTML.slice(0, 80))].join("; ")
}}
</script>"""  # headless Chromium lays a page of its own out at 500 pixels or more; a frame may be narrower


def browse(page: Path, *options: str) -> str:
    """What headless Chromium prints for the page."""
    assert BROWSER
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=360,2000"]
    command = [BROWSER, *flags, f"--user-data-dir={page.parent / 'profile'}", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chrome or Chromium on this machine")
def test_in_a_browser_on_a_phone(tmp_path: Path) -> None:
    """Nothing is wider than the window, with all unfolded and hostile names, and the thumbnails are drawn."""
    items = [item(*HOSTILE[:n], detail=HOSTILE[-1]) for n in range(5)] + [item(name) for name in HOSTILE]
    numbers = {"train": 1_234_567, "val": 123_456, "test": 123_456}
    page = written(
        tmp_path,
        audit(
            *[finding(severity, items, title=HOSTILE[-1], count=123_456) for severity in audit_page.SEVERITIES],
            data_dir=HOSTILE[-1],
            classes={name: numbers for name in HOSTILE},
            exclude=HOSTILE,
            ignored=[{"path": name, "reason": name} for name in HOSTILE],
        ),
    )
    around = tmp_path / "around.html"
    around.write_text(PHONE.format(html.escape(page)), encoding="utf-8")
    title = re.search("<title>(.*?)</title>", browse(around, "--dump-dom"), re.S)
    assert title and title[1] == "360 wide, shows 360"

    simple = tmp_path / "simple.html"
    write_audit_page(simple, audit(finding("error", [item("a.jpg")])), red)
    browse(simple, f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(tmp_path / "page.png") as image:
        drawn = np.abs(np.asarray(image.convert("RGB")).astype(int) - RED).max(2) < 12
    assert drawn.sum() > 80 * 60

"""The one decode: what it does to pixels, and that it is the same for everybody."""

from __future__ import annotations

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import images
import numpy as np
import pytest
from PIL import Image

from effnet_lit.data.decode import DecodeError, decode, examine, fit_square, formats

ROOT = Path(__file__).resolve().parent.parent


def test_shape_dtype_and_squish(tmp_path: Path) -> None:
    images.scene(400, 40).save(tmp_path / "wide.png")
    pixels = decode(tmp_path / "wide.png", 32, "squish")
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert images.corners_of(pixels) == list(images.CORNERS)


def test_an_image_of_the_size_asked_for_is_untouched(tmp_path: Path) -> None:
    images.noise(tmp_path / "a.png", 1, size=32)
    assert np.array_equal(decode(tmp_path / "a.png", 32, "squish"), np.asarray(Image.open(tmp_path / "a.png")))


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((256, 256)).sum(0) % 2 * np.uint8(255)  # a checkerboard is grey from afar
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    assert np.abs(decode(tmp_path / "board.png", 32, "squish")[2:-2, 2:-2].astype(int) - 127).max() <= 2


def filters(length: int, size: int) -> np.ndarray:
    """(size, length): weights of an antialiased bicubic filter (Keys 1981, a = -0.5), independent of Pillow's code."""
    scale = length / size
    distance = np.abs((np.arange(length) + 0.5)[None] - (np.arange(size)[:, None] + 0.5) * scale) / max(scale, 1)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(270, 480), (60, 80), (480, 270)])
def test_columns_are_resized_before_rows_whatever_pillow_prefers(shape: tuple[int, int]) -> None:
    """The other order rounds otherwise; Pillow 13 takes it for some tall images, 12 does not."""
    width, height = shape
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    columns = np.einsum("sw,hwc->hsc", filters(width, 64), pixels).round().clip(0, 255)
    expected = np.einsum("sh,hwc->swc", filters(height, 64), columns).round().clip(0, 255)
    off = np.abs(fit_square(Image.fromarray(pixels), 64, "squish") - expected)
    assert off.max() <= 1 and (off > 0).mean() < 0.01


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.array_equal(decode(tmp_path / "ramp.png", 64, "squish")[..., 0], ramp >> 8)


def test_half_transparent_is_blended_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert (decode(tmp_path / "half.png", 8, "squish") == 127).all()


def test_hash_sees_pixels_not_encodings(tmp_path: Path) -> None:
    names = ("a.png", "b.bmp", "c.tif", "d.webp")
    for name in names:
        images.scene().save(tmp_path / name, lossless=True)
    images.save_exif(tmp_path / "turned.png", 6)
    hashes = {examine(tmp_path / name, 32, "squish")[1] for name in (*names, "turned.png")}
    assert len(hashes) == 1
    changed = images.scene()
    changed.putpixel((0, 0), (220, 20, 21))  # vanishes in the resized image, not in the hash
    changed.save(tmp_path / "changed.png")
    assert examine(tmp_path / "changed.png", 4, "squish")[1] not in hashes
    Image.new("RGB", (4, 6)).save(tmp_path / "tall.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "wide.png")
    assert examine(tmp_path / "tall.png", 4, "squish")[1] != examine(tmp_path / "wide.png", 4, "squish")[1]


def test_with_and_without_hash_agree(tmp_path: Path) -> None:
    images.save_exif(tmp_path / "a.jpg", 8)
    assert np.array_equal(decode(tmp_path / "a.jpg", 32, "squish"), examine(tmp_path / "a.jpg", 32, "squish")[0])


def test_many_threads_leave_warnings_and_pillow_as_they_were(tmp_path: Path) -> None:
    for name in ("broken exif.jpg", "plain.png"):
        images.READABLE[name](tmp_path / name)
    before = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(
            lambda i: decode(tmp_path / ("broken exif.jpg", "plain.png")[i % 2], 8, "squish"), range(400)
        ):
            assert pixels.shape == (8, 8, 3)
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before


def test_a_large_image_within_the_limit_is_read(tmp_path: Path) -> None:
    Image.new("1", (16_320, 12_240), 1).save(tmp_path / "phone.png")  # 199.8 megapixels, above Pillow's own limit
    assert (decode(tmp_path / "phone.png", 8, "squish") == 255).all()


def test_what_is_no_file_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no such file"):
        decode(tmp_path / "nowhere.png", 8, "squish")
    with pytest.raises(DecodeError, match="is a directory"):
        decode(tmp_path, 8, "squish")


@pytest.mark.skipif("HEIF" not in formats(), reason="pillow_heif is not installed: HEIC is named, not read")
def test_heic_is_read_where_the_extra_is_installed(tmp_path: Path) -> None:
    images.scene(64, 64).save(tmp_path / "a.heic", quality=95)
    corners = images.corners_of(decode(tmp_path / "a.heic", 32, "squish"))
    assert np.abs(np.subtract(corners, images.CORNERS)).max() < 25


def test_heic_without_the_extra_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    script = (
        "import sys; from pathlib import Path; sys.modules['pillow_heif'] = None\n"  # import of it fails now
        "from effnet_lit.data.decode import decode\n"
        "decode(Path(sys.argv[1]), 8, 'squish')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.heic")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "pip install effnet_lit[heif]" in done.stderr

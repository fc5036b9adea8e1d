"""load_rgb: every usual kind of image file becomes 8-bit RGB, and what cannot be read is one line."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader

from flsl.data.decode import load_rgb
from flsl.runtime.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def _smooth(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + 4 * c)) + np.cos(y / (7 + 5 * c)) for c in range(3)]
    return Image.fromarray((np.stack(waves, -1) * 60 + 128).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.png"),
        ("RGB", "a.jpg"),
        ("RGB", "a.bmp"),
        ("RGB", "a.webp"),
        ("RGB", "a.tif"),
        ("L", "a.png"),
        ("L", "a.jpg"),
        ("L", "a.pgm"),
        ("1", "a.png"),
        ("P", "a.png"),
        ("LA", "a.png"),
        ("RGBA", "a.png"),
        ("RGBA", "a.webp"),
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
    ],
)
def test_pixels_are_those_of_torchvisions_loader(tmp_path: Path, mode: str, name: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(COLOURS[..., 0]))
    image.save(tmp_path / name)
    loaded = load_rgb(tmp_path / name)
    assert loaded.mode == "RGB"
    assert loaded.size == (40, 24)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(default_loader(str(tmp_path / name))))


def test_adobe_inverted_cmyk_is_not_a_negative(tmp_path: Path) -> None:
    photo = _smooth(64, 64)
    photo.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    difference = np.asarray(load_rgb(tmp_path / "a.jpg")).astype(int) - np.asarray(photo)
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("transparency", [3, bytes([0, 255, 128, 7])])
def test_transparent_palette_keeps_its_colours_without_a_warning(tmp_path: Path, transparency: object) -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 4, "P")
    palette = [10, 20, 30, 200, 0, 0, 0, 200, 0, 1, 2, 3]
    image.putpalette(palette)
    image.save(tmp_path / "a.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = np.asarray(load_rgb(tmp_path / "a.png"))
    np.testing.assert_array_equal(loaded[0], np.array(palette).reshape(4, 3))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(load_rgb(tmp_path / name)), np.repeat(expected[..., None], 3, -1))


def test_exif_orientation_is_ignored_as_torchvision_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=exif)
    assert load_rgb(tmp_path / "a.jpg").size == (40, 24)


@pytest.mark.parametrize("name", ["a.tif"])
def test_samples_that_have_no_8_bit_meaning_are_refused(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"a\.tif: not a readable image: .*floating-point"):
        load_rgb(tmp_path / name)
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / name)
    with pytest.raises(UserError, match="more than 16 bits"):
        load_rgb(tmp_path / name)


def test_missing_and_damaged_files_are_one_line_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "it's a photo.jpg"
    with pytest.raises(UserError, match=r"it's a photo\.jpg: not a readable image: cannot be read \(No such file"):
        load_rgb(path)
    path.write_text("no image")
    with pytest.raises(UserError, match="not an image of a known kind"):
        load_rgb(path)
    _smooth(200, 200).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="truncated"):
        load_rgb(path)

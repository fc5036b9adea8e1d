"""decode_pixels: bit for bit what Pillow reads, whichever library decodes; what neither can read is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flsl.data import pixels
from flsl.data.decode import load_rgb, read_bytes
from flsl.data.pixels import decode_pixels
from flsl.runtime.errors import UserError


def _photo(height: int, width: int) -> Image.Image:
    """Waves under noise: something to compress."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (9 + 4 * c)) + np.cos(y / (7 + 5 * c)) for c in range(3)], -1)
    noise = np.random.default_rng(1).normal(0, 12, (height, width, 3))
    return Image.fromarray((waves * 60 + 128 + noise).clip(0, 255).astype(np.uint8))


def _of_pillow(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(load_rgb(path))).permute(2, 0, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
@pytest.mark.parametrize("size", [(97, 131), (1, 1), (64, 48)])
def test_jpegs_are_decoded_by_simplejpeg_to_pillows_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], size: tuple[int, int]
) -> None:
    path = tmp_path / "a.jpg"
    _photo(*size).save(path, quality=88, **options)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "to_rgb", None)  # Pillow is not asked
        decoded = decode_pixels(read_bytes(path), path)
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, _of_pillow(path))


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "a.jpg"), ("CMYK", "a.jpg"), ("RGB", "a.png"), ("P", "a.png"), ("I;16", "a.png")]
)
def test_other_kinds_are_pillows(tmp_path: Path, mode: str, name: str) -> None:
    path = tmp_path / name
    _photo(40, 30).convert("L" if mode == "I;16" else mode).convert(mode).save(path)
    assert torch.equal(decode_pixels(read_bytes(path), path), _of_pillow(path))


def test_without_simplejpeg_pillow_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    _photo(40, 30).save(path)
    with_it = decode_pixels(read_bytes(path), path)
    monkeypatch.setattr(pixels, "decode_jpeg", None)
    assert torch.equal(decode_pixels(read_bytes(path), path), with_it)


def test_what_simplejpeg_refuses_is_pillows_to_judge(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _photo(200, 200).save(path)
    # coded pixels that end too early, with the end marker there: libjpeg warns and fills the rest with gray
    path.write_bytes(path.read_bytes()[:6000] + b"\xff\xd9")
    assert torch.equal(decode_pixels(read_bytes(path), path), _of_pillow(path))


def test_missing_and_damaged_files_are_one_line_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "it's a photo.jpg"
    with pytest.raises(UserError, match=r"it's a photo\.jpg: not a readable image: cannot be read \(No such file"):
        read_bytes(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="not an image of a known kind"):
        decode_pixels(read_bytes(path), path)
    _photo(200, 200).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"it's a photo\.jpg: not a readable image: truncated"):
        decode_pixels(read_bytes(path), path)


@pytest.mark.real
def test_photographs_are_pillows_bit_for_bit(real_data: Path) -> None:
    paths = sorted((real_data / "imagenet").glob("*/*/*.JPEG"))
    assert len(paths) > 100
    for path in paths:
        assert torch.equal(decode_pixels(read_bytes(path), path), _of_pillow(path)), path

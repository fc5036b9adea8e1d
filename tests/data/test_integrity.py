"""One look at a file: what is quarantined and why, what is not, and what the cheap look trusts."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from simplejpeg import decode_jpeg

from flsl.data.decode import load_rgb
from flsl.data.integrity import inspect
from flsl.runtime.errors import UserError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))


def _bytes(format_: str, image: Image.Image = NOISE, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _thumbnail() -> bytes:
    """Return EXIF data with a small JPEG of its own, whose end-of-image marker is not the file's."""
    exif = Image.Exif()
    exif[0x9286] = _bytes("JPEG", NOISE.resize((8, 8)))
    return exif.tobytes()


JPEG, PNG = _bytes("JPEG"), _bytes("PNG")
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty file"),
    "text": (b"hello, I am a text", "not an image of a known kind"),
    "zeros": (bytes(5000), "not an image of a known kind"),
    "html error page": (b"<!DOCTYPE html><html>404 Not Found</html>", "not an image of a known kind"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known kind"),
    "jpeg cut in half": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg without its last kilobyte": (JPEG[:-1024], "truncated"),
    "jpeg header only": (JPEG[:100], "truncated"),
    "jpeg that ends in zeros, as after a crash": (JPEG[:-2000] + bytes(2000), "truncated"),
    "jpeg magic only": (b"\xff\xd8\xff", ""),
    "jpeg without its end marker": (JPEG[:-2], "truncated"),
    "jpeg cut, with a whole thumbnail": (_bytes("JPEG", exif=_thumbnail())[:-900], "truncated"),
    "png cut in half": (PNG[: len(PNG) // 2], "truncated"),
    "png without its end": (PNG[:-12], ""),
    "png with a flipped bit": (PNG[:500] + bytes([PNG[500] ^ 4]) + PNG[501:], "cannot be decoded"),
    "bomb": (_png(60000, 60000, zlib.compress(b"")), "too many pixels"),
    "png without area": (_png(0, 5, zlib.compress(b"")), ""),
    "webp cut": (_bytes("WEBP")[:200], ""),
    "bmp cut": (_bytes("BMP")[:2000], "truncated"),
    "tiff cut": (_bytes("TIFF")[:3000], ""),
    "gif cut": (_bytes("GIF")[:700], ""),
    "ppm cut": (_bytes("PPM")[:1000], "truncated"),
    "float samples": (
        _bytes("TIFF", Image.fromarray(np.ones((5, 5), np.float32))),
        "floating-point samples",
    ),
}
# decoders make something of these, but pixels are missing or nothing says that none are
READABLE = {"jpeg that ends in zeros, as after a crash", "jpeg without its end marker", "png without its end"}


@pytest.mark.parametrize("name", list(BAD))
@pytest.mark.parametrize("decode", [False, True])
def test_bad_files_are_quarantined_with_their_reason(tmp_path: Path, name: str, decode: bool) -> None:
    data, expected = BAD[name]
    path = tmp_path / "x.JPEG"
    path.write_bytes(data)
    found = inspect(path, "images", decode)
    assert found.status != "ok"
    assert expected in found.status
    assert "\n" not in found.status
    assert found.digest == hashlib.blake2b(data, digest_size=8).hexdigest()
    assert found.bytes == len(data)
    if name not in READABLE:
        with pytest.raises(UserError):  # and rightly so: training could not have read it
            load_rgb(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _bytes("JPEG", NOISE.convert("L")),
        lambda: _bytes("JPEG", NOISE.convert("CMYK")),
        lambda: _bytes("JPEG", progressive=True),
        lambda: _bytes("PNG", NOISE.convert("P")),
        lambda: _bytes("PNG", NOISE.convert("RGBA")),
        lambda: _bytes("PNG", Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8))),
        lambda: _bytes("PNG", NOISE.convert("1")),
        lambda: _bytes("WEBP"),
        lambda: _bytes("GIF"),
        lambda: _bytes("BMP"),
        lambda: _bytes("TIFF", compression="tiff_lzw"),
        lambda: _bytes("JPEG", comment=b"\xff\xd9"),
        lambda: _bytes("JPEG", exif=_thumbnail()),
        lambda: _bytes("JPEG") + b"some camera's trailer",
        lambda: _bytes("JPEG", Image.new("RGB", (1, 1))),
    ],
)
@pytest.mark.parametrize("decode", [False, True])
def test_unusual_but_readable_images_are_ok(tmp_path: Path, make: Callable[[], bytes], decode: bool) -> None:
    path = tmp_path / "x.JPEG"
    path.write_bytes(make())
    found = inspect(path, "images", decode)
    with Image.open(path) as image:
        assert (found.width, found.height, found.mode, found.format) == (*image.size, image.mode, image.format)
    assert found.status == "ok"
    load_rgb(path)


def test_decoding_finds_what_the_cheap_look_cannot(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(_png(8, 8, zlib.compress(b"too short")))  # every checksum holds
    assert inspect(path, "images").status == "ok"
    assert inspect(path, "images", decode=True).status.startswith("cannot be decoded")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_finds_lost_pixels_over_which_pillow_passes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.jpg"
    data = _bytes("JPEG", NOISE.convert(mode))
    middle = len(data) // 2
    path.write_bytes(data[:middle] + data[middle + 900 :])
    load_rgb(path)
    assert inspect(path, "images").status == "ok"
    found = inspect(path, "images", decode=True).status
    assert found == "cannot be decoded (Corrupt JPEG data: premature end of data segment)"


def test_decoding_forgives_what_costs_no_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(JPEG[:-2] + b"padding" + JPEG[-2:])
    with pytest.raises(ValueError, match="extraneous bytes before marker"):
        decode_jpeg(path.read_bytes())
    assert inspect(path, "images", decode=True).status == "ok"


def test_a_file_that_cannot_be_read_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(JPEG)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    found = inspect(path, "images")
    assert (found.status, found.digest, found.bytes) == ("cannot be read (Permission denied)", "", len(JPEG))


def test_a_file_that_vanishes_after_the_listing_is_quarantined(tmp_path: Path) -> None:
    assert inspect(tmp_path / "gone.jpg", "images").status == "cannot be read (No such file or directory)"


def test_masks_tell_their_ids_and_must_be_indexed(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 0, 2], [255, 1, 0]], np.uint8), "P")
    mask.putpalette(list(range(256)) * 3)
    mask.save(tmp_path / "m.png")
    assert inspect(tmp_path / "m.png", "masks").ids == "0 1 2 255"
    NOISE.save(tmp_path / "rgb.png")
    assert "indexed PNG, not mode RGB" in inspect(tmp_path / "rgb.png", "masks").status


def test_tables_are_only_hashed(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"")
    assert inspect(path, "tables").status == "ok"
    path.write_bytes(b"1,2,3")
    assert inspect(path, "tables").digest == hashlib.blake2b(b"1,2,3", digest_size=8).hexdigest()

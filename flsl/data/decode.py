"""From an image file of any usual kind to 8-bit RGB pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from flsl.data.reading import patiently
from flsl.runtime.errors import UserError

try:
    from simplejpeg import decode_jpeg as decode_jpeg
except ImportError:  # on a machine for which there is no wheel
    decode_jpeg = None

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""Names that count as images: torchvision's ImageFolder list, so that both see the same files."""
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""What such a file may really hold. Pillow's other readers stay shut: fewer parsers face files from elsewhere."""
_WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_MAX_16_BITS = 65535


def load_rgb(path: Path | str) -> Image.Image:
    """Read an image file as 8-bit RGB.

    Grayscale, palette, CMYK (Pillow undoes Adobe's inversion) and 1-bit images are converted; 16-bit samples are
    scaled to 8 bits, not clipped. Transparency is dropped, not composited, and the EXIF orientation is ignored: both
    as torchvision's ImageFolder does, whose pixels the field's ImageNet figures come from. Of a file with several
    frames the first is read.

    Args:
        path: the file.

    Raises:
        UserError: naming the file, when it cannot be read or decoded.
    """
    return decode_rgb(BytesIO(read_bytes(path)), path)


def read_bytes(path: Path | str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        UserError: naming the file, when it cannot be read.
    """
    try:
        return patiently(Path(path).read_bytes)
    except OSError as error:
        raise UserError(f"{path}: not a readable image: {reason(error)}") from error


def decode_rgb(stream: IO[bytes], name: object) -> Image.Image:
    """Decode an image file that is open or in memory, as :func:`load_rgb` does; ``name`` is for messages.

    Raises:
        UserError: when it cannot be decoded.
    """
    try:
        return to_rgb(open_image(stream))
    except Exception as error:  # whatever a parser of damaged bytes may raise
        raise UserError(f"{name}: not a readable image: {reason(error)}") from error


def open_image(stream: IO[bytes]) -> Image.Image:
    """Read an image's header; the pixels are read later.

    Raises:
        Exception: whatever Pillow's parsers raise on bytes that are no image; :func:`reason` puts it in words.
    """
    return Image.open(stream, formats=FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image to RGB, as :func:`load_rgb` says.

    Raises:
        Exception: whatever Pillow's decoders raise on damaged pixels; :func:`reason` puts it in words.
    """
    image.load()
    if image.mode in _WIDE_MODES:
        wide = np.asarray(image).astype(np.int32)
        if wide.min() < 0 or wide.max() > _MAX_16_BITS:
            raise ValueError("samples of more than 16 bits; convert it to 8 or 16 bits a sample")
        image = Image.fromarray(((wide * 255 + _MAX_16_BITS // 2) // _MAX_16_BITS).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point samples; convert it to 8 or 16 bits a sample")
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours; converting to RGB at once makes Pillow warn
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """Return in a few words, on one line, why an image cannot be read."""
    text = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known kind"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels (a decompression bomb?): {text}"
    if isinstance(error, EOFError | IndexError) or "truncated" in text.lower():
        return f"truncated ({text or 'the file ends too early'})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    return f"cannot be decoded ({text or type(error).__name__})"

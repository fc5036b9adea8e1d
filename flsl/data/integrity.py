"""Whether one file can be used: read once, hashed, and looked at just closely enough."""

from __future__ import annotations

import hashlib
import os
import stat
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from flsl.data.decode import decode_jpeg, open_image, reason, to_rgb
from flsl.data.listing import Holds
from flsl.data.reading import patiently

OK = "ok"
_DIGEST_BYTES = 8
_LARGEST_IMAGE = 512 * 2**20
_JPEG_END = b"\xff\xd9"
# in libjpeg's words, that pixels are lost; it has others for oddities that cost none
_LOST = ("premature end", "bad Huffman code", "instead of RST")


class Inspection(NamedTuple):
    """What a look at a file found.

    Attributes:
        width: pixels; 0 where it is no readable image. So is ``height``.
        mode: Pillow's mode, e.g. ``"RGB"``.
        format: Pillow's format, e.g. ``"JPEG"``.
        bytes: size of the file.
        mtime_ns: modification time when it was read.
        digest: first 16 hexadecimal digits of the BLAKE2b of its bytes; ``""`` where they were not read.
        status: ``"ok"`` or why the file is quarantined.
        ids: of a mask, the object numbers in it, separated by spaces (0 is the background).
    """

    width: int
    height: int
    mode: str
    format: str
    bytes: int
    mtime_ns: int
    digest: str
    status: str
    ids: str


def inspect(path: Path, holds: Holds, decode: bool = False) -> Inspection:
    """Look at one file; this never raises for what is wrong with the file.

    The bytes are read once, for the digest. Then an image's header is parsed, and a JPEG is taken as whole if the
    end-of-image marker follows its pixels, a PNG if the checksums of all its chunks hold up to its end; other formats
    are rare and decoded. ``decode`` also decodes every image: that finds damage in the middle.
    """
    try:
        return patiently(lambda: _inspect(path, holds, decode))
    except OSError as error:
        return _unread(_stat(path), f"cannot be read ({error.strerror})")


def _inspect(path: Path, holds: Holds, decode: bool) -> Inspection:
    with path.open("rb") as stream:
        info = os.fstat(stream.fileno())
        if not stat.S_ISREG(info.st_mode):
            return _unread(info, "not a regular file")
        if holds == "tables" or info.st_size > _LARGEST_IMAGE:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()
            status = OK if holds == "tables" else f"larger than {_LARGEST_IMAGE // 2**20} MiB"
            return Inspection(0, 0, "", "", info.st_size, info.st_mtime_ns, digest, status, "")
        data = stream.read()
    digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
    width, height, mode, format_, status, ids = _look(data, holds, decode)
    return Inspection(width, height, mode, format_, len(data), info.st_mtime_ns, digest, status, ids)


def _look(data: bytes, holds: Holds, decode: bool) -> tuple[int, int, str, str, str, str]:
    if not data:
        return 0, 0, "", "", "empty file", ""
    try:
        stream = BytesIO(data)
        with open_image(stream) as image:
            width, height, mode, format_ = *image.size, image.mode, image.format or ""
            status, ids = OK, ""
            try:
                if holds == "masks":
                    ids = _mask_ids(image)
                elif format_ == "JPEG":
                    # Pillow stopped where the coded pixels begin; in these the marker cannot occur by chance
                    if not data.endswith(_JPEG_END) and data.find(_JPEG_END, stream.tell()) < 0:
                        raise EOFError("no end-of-image marker")
                elif format_ == "PNG":
                    image.verify()
                else:
                    to_rgb(image)
                if decode and holds == "images":
                    _decode(data)
            except Exception as error:  # whatever a decoder of damaged bytes may raise
                status = reason(error)
            return width, height, mode, format_, status, ids
    except Exception as error:  # whatever a parser of damaged bytes may raise
        return 0, 0, "", "", reason(error), ""


def _decode(data: bytes) -> None:
    """Decode an image wholly; where JPEG's pixels are lost, Pillow passes over that and leaves gray in their place.

    Raises:
        Exception: whatever decoders raise on damaged pixels.
    """
    with open_image(BytesIO(data)) as image:
        if decode_jpeg is not None and image.format == "JPEG" and image.mode in ("RGB", "L"):
            try:
                decode_jpeg(data, "GRAY" if image.mode == "L" else "RGB")
                return
            except ValueError as error:
                if any(words in str(error) for words in _LOST):
                    raise
        to_rgb(image)


def _mask_ids(image: Image.Image) -> str:
    if image.mode not in ("P", "L", "1"):
        raise ValueError(f"a mask is an indexed PNG, not mode {image.mode}")
    # a mask of one bit gives truth values
    return " ".join(map(str, np.unique(np.asarray(image).astype(np.uint8))))


def _unread(info: os.stat_result | None, status: str) -> Inspection:
    size, time = (info.st_size, info.st_mtime_ns) if info is not None else (0, 0)
    return Inspection(0, 0, "", "", size, time, "", status, "")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None

"""Masks as run-length codes: polygons and runs to COCO's compressed form, refusing what is broken.

COCO's own decoder trusts its input: a code that ends in the middle of a number is read past its end, and two masks of
different lengths are compared for ever. Everything that comes from a file is therefore checked here first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = 5
_LONGEST = 7  # digits of five bits that a number of 32 bits needs
BROKEN = "a run-length code that cannot be decoded or whose runs do not add up to its image"
_NO_POLYGON = "a polygon that is not x, y, x, y, …"
_CHUNK = 1 << 16  # characters decoded at once: what a core's cache holds


class MaskError(ValueError):
    """A segmentation that cannot be drawn; the message says what is wrong with this one.

    Attributes:
        kind: what is wrong, in words that fit many.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_finite(value: object) -> bool:
    """Tell whether a value of a JSON file is a number that a float can hold."""
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # whole numbers have no largest one, floats have
        return False


def check_codes(codes: Sequence[bytes], pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of COCO's compressed run-length codes are sound: they decode, and to ``pixels`` pixels each.

    Args:
        codes: the ``counts`` of n masks, as ASCII.
        pixels: (n,) height × width of each mask.
    """
    ends = np.cumsum([len(code) for code in codes], dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1] if len(ends) else 0, _CHUNK)).tolist()
    bounds = sorted({0, *cuts, len(codes)})
    chunks = [_check_chunk(codes[a:b], pixels[a:b]) for a, b in itertools.pairwise(bounds)]
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=bool)


def _check_chunk(codes: Sequence[bytes], pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    lengths = np.array([len(code) for code in codes], dtype=np.int64)
    text = np.frombuffer(b"".join(codes), dtype=np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(codes)), lengths)
    sound = lengths > 0
    sound[owner[(text < 0) | (text > 63)]] = False
    ends_inside = np.zeros(len(codes), dtype=bool)
    last = np.cumsum(lengths) - 1
    ends_inside[sound] = (text[last[sound]] & 0x20) > 0
    sound &= ~ends_inside

    keep = sound[owner]
    text, owner = text[keep], owner[keep]
    if not len(text):
        return sound
    ends = (text & 0x20) == 0
    starts = np.flatnonzero(np.concatenate([[True], ends[:-1]]))
    stops = np.flatnonzero(ends)
    digits = stops - starts + 1
    position = np.arange(len(text)) - np.repeat(starts, digits)
    shift = np.minimum(position, _LONGEST) * _BITS
    numbers = np.add.reduceat((text & 0x1F) << shift, starts)
    negative = (text[stops] & 0x10) > 0
    numbers -= np.where(negative, 1 << (np.minimum(digits, _LONGEST) * _BITS), 0)
    owner = owner[stops]
    sound[owner[digits > _LONGEST]] = False

    # from the fourth run on, a number is the difference to the run before the previous one
    first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    place = np.arange(len(owner)) - np.repeat(first, np.diff(np.append(first, len(owner))))
    runs = np.where(place == 0, numbers, 0)
    for chain in ((place % 2 == 1), (place % 2 == 0) & (place > 0)):
        total = np.cumsum(np.where(chain, numbers, 0))
        before = np.concatenate([[0], total])[first]
        runs = np.where(chain, total - np.repeat(before, np.diff(np.append(first, len(owner)))), runs)
    sound[owner[runs < 0]] = False
    covered = np.zeros(len(codes), dtype=np.int64)
    np.add.at(covered, owner, runs)
    sound &= covered == pixels
    return sound


def check(segmentation: Any, height: int, width: int) -> bytes | None:
    """Refuse a segmentation that cannot be drawn; return the text of a compressed one for :func:`check_codes`.

    Args:
        segmentation: a list of polygons, or a run-length mask with counts as a list or compressed.
        height: of its image.
        width: of its image.

    Raises:
        MaskError: says what is wrong with the segmentation.
    """
    if isinstance(segmentation, list):
        _check_polygons(segmentation, height, width)
        return None
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise MaskError(
            "the segmentation is neither a list of polygons nor a run-length code with size and counts",
            "a segmentation that is neither polygons nor a run-length code",
        )
    if segmentation["size"] != [height, width]:
        raise MaskError(
            f"the mask's size {segmentation['size']} is not the image's [{height}, {width}]",
            "a run-length code of another size than its image",
        )
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        try:
            return counts if isinstance(counts, bytes) else counts.encode("ascii")
        except UnicodeError:
            raise MaskError("the run-length code is broken: it has characters that are not ASCII", BROKEN) from None
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise MaskError("the run-length code is broken: its counts are whole numbers from 0 on", BROKEN)
    if sum(counts) != height * width:
        raise MaskError(
            f"the run-length code is broken: its runs cover {sum(counts)} pixels, the image has {height * width}",
            BROKEN,
        )
    return None


def compress(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return a polygon list or an uncompressed or compressed run-length mask as ``{"size", "counts"}`` (compressed).

    A compressed code is passed through with its ``counts`` as text; :func:`check_codes` checks many of them at once.

    Raises:
        MaskError: says what is wrong with the segmentation.
    """
    from faster_coco_eval.core import mask as coco_mask  # which the check of a data set does without

    code = check(segmentation, height, width)
    if code is None:
        if isinstance(segmentation, list):
            polygons = [list(map(float, polygon)) for polygon in segmentation]
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        else:
            rle = coco_mask.frPyObjects([{"size": [height, width], "counts": segmentation["counts"]}], height, width)[0]
        code = rle["counts"] if isinstance(rle["counts"], bytes) else rle["counts"].encode("ascii")
    return {"size": [height, width], "counts": code.decode("ascii", "replace")}


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    if not polygons:
        raise MaskError("the segmentation is empty", "an empty segmentation")
    reach = 10.0 * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise MaskError("a polygon is a list x, y, x, y, … of even length", _NO_POLYGON)
        if len(polygon) < 6:
            raise MaskError(
                f"a polygon has {len(polygon) // 2} points; it needs at least three", "a polygon of fewer than 3 points"
            )
        for value in polygon:
            if not is_finite(value):
                raise MaskError("a polygon's coordinates are finite numbers", _NO_POLYGON)
            if abs(value) > reach:
                raise MaskError(
                    f"a polygon's coordinate {value:g} lies far outside the {width}×{height} image",
                    "a polygon that lies far outside its image",
                )

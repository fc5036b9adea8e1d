"""Binary masks packed 64 pixels per word, on which the DAVIS measures cost a few word operations per row.

A stack of masks (…, height, width) becomes words (…, height, ⌈width / 64⌉); bit ``i`` of word ``j`` is pixel
``64 j + i``, and bits beyond the width are zero. Counts are exact, so that figures equal those of a tool that goes
pixel by pixel.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Masks: TypeAlias = NDArray[np.bool_]
Words: TypeAlias = NDArray[np.uint64]
Counts: TypeAlias = NDArray[np.int64]

_BITS = 64
_WORD = np.dtype("<u8")  # packbits' little bit order and little-endian words put pixel x at bit x


def pack(masks: Masks) -> Words:
    """Pack boolean masks (…, height, width) into words (…, height, ⌈width / 64⌉)."""
    octets = np.packbits(masks, axis=-1, bitorder="little")
    missing = -octets.shape[-1] % _WORD.itemsize
    if missing:
        octets = np.concatenate([octets, np.zeros((*octets.shape[:-1], missing), np.uint8)], axis=-1)
    return np.ascontiguousarray(octets).view(_WORD)


def count(words: Words) -> Counts:
    """Return the number of set pixels of each mask of the stack: (…, height, words) to (…)."""
    counts: Counts = np.bitwise_count(words).sum((-2, -1), dtype=np.int64)
    return counts


def boundary(words: Words, width: int) -> Words:
    """Return the boundary map of each mask, as the Berkeley segmentation benchmark's ``seg2bmap`` draws it.

    A pixel is on the boundary when it differs from its right, lower or lower right neighbour; beyond the image the
    mask goes on as at its edge. The map is thus one pixel wide and lies half a pixel up and left of the true boundary.

    Args:
        words: packed masks (…, height, words).
        width: width in pixels.
    """
    right = _left_by_one(words)
    last, bit = divmod(width - 1, _BITS)
    right[..., last] |= words[..., last] & _WORD.type(1 << bit)
    differs = words ^ right
    differs[..., :-1, :] |= words[..., :-1, :] ^ words[..., 1:, :]
    differs[..., :-1, :] |= words[..., :-1, :] ^ right[..., 1:, :]
    return differs


def dilate(words: Words, radius: int, width: int) -> Words:
    """Dilate each mask by a disk: a pixel is set when a set pixel lies within ``radius`` (Euclidean, in pixels).

    Args:
        words: packed masks (…, height, words).
        radius: of the disk, in pixels, at least 0.
        width: width in pixels; nothing is set beyond it.
    """
    height = words.shape[-2]
    dilated = np.zeros_like(words)
    spread, reach = words.copy(), 0
    # from the disk's top and bottom rows, which are the narrowest, to its widest row in the middle
    for dy in range(radius, -1, -1):
        half = math.isqrt(radius * radius - dy * dy)
        while reach < half:
            spread = words | _left_by_one(spread) | _right_by_one(spread)
            reach += 1
        if dy >= height:
            continue
        dilated[..., dy:, :] |= spread[..., : height - dy, :]
        if dy:
            dilated[..., : height - dy, :] |= spread[..., dy:, :]
    beyond = width % _BITS
    if beyond:
        dilated[..., -1] &= _WORD.type((1 << beyond) - 1)
    return dilated


def _left_by_one(words: Words) -> Words:
    """Move every pixel one to the left: pixel x takes the value of x + 1."""
    moved = words >> _WORD.type(1)
    moved[..., :-1] |= words[..., 1:] << _WORD.type(_BITS - 1)
    return moved


def _right_by_one(words: Words) -> Words:
    """Move every pixel one to the right: pixel x takes the value of x - 1."""
    moved = words << _WORD.type(1)
    moved[..., 1:] |= words[..., :-1] >> _WORD.type(_BITS - 1)
    return moved

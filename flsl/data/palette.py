"""The colours of indexed masks."""

from __future__ import annotations

from functools import cache


@cache
def palette() -> bytes:
    """Return PASCAL VOC's 256 colours, the first of which are DAVIS', too: id's bits spread over red, green, blue."""
    colours = bytearray()
    for identity in range(256):
        for channel in range(3):
            bits = [(identity >> (3 * k + channel)) & 1 for k in range(8)]
            colours.append(sum(bit << (7 - k) for k, bit in enumerate(bits)))
    return bytes(colours)

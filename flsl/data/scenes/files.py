"""What the makers of the four data sets share: pieces of work, random numbers by place, image files."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Task: TypeAlias = tuple[int, ...]
"""A piece of a data set's work; what its numbers mean is the data set's own affair."""


def rng_of(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """Return the random numbers of one image or video, by its place: who makes it, and when, changes nothing."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *place])


def cut(count: int, size: int) -> list[tuple[int, int]]:
    """Cut ``range(count)`` into pieces (first, last) of at most ``size``, ``last`` exclusive."""
    return [(first, min(first + size, count)) for first in range(0, count, size)]


def save_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB image (height, width, 3) as a JPEG file whose loss is small against the textures' contrast."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "JPEG", quality=95, subsampling=0)

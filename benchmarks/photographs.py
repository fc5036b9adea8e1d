"""Photographs for the benchmarks that read files: real ones where FLSL_REAL_DATA names them, else made ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from flsl.data.images import ImageSet
from flsl.data.scenes.images import draw_image

_SIZE, _LARGE = (500, 375), (2400, 1600)
_LARGE_EVERY = 110  # as in a sample of ImageNet with an image of each of 110 classes
_PIECE = 512


def photographs(folder: Path, count: int) -> ImageSet:
    """Return images of ImageNet's sizes: 500 × 375 mostly, a few large ones, JPEG quality 90, about 110 KB each."""
    real = os.environ.get("FLSL_REAL_DATA")
    if real:
        return ImageSet.scan(Path(real) / "imagenet", "train")
    for index in range(count):
        path = folder / "train" / str(index % 10) / f"{index:05d}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            size = _LARGE if index % _LARGE_EVERY == _LARGE_EVERY - 1 else _SIZE
            draw(index, *size).save(path, "JPEG", quality=90)
    return ImageSet.scan(folder, "train")


def draw(index: int, width: int, height: int) -> Image.Image:
    """Draw made objects and textures with a camera's noise on them, which is what a JPEG's bytes are spent on."""
    rng = np.random.default_rng((7, index))
    piece, _ = draw_image(rng, index % 10, _PIECE)
    scene = Image.fromarray(piece).resize((max(width, height),) * 2, Image.Resampling.BICUBIC)
    pixels = np.asarray(scene.crop((0, 0, width, height)), dtype=np.float32)
    # twice the sensor's noise on small pictures: large ones are smoother a pixel
    noise = rng.normal(0, 13 if width < 1000 else 5, (height, width, 1)).astype(np.float32)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))

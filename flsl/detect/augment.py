"""DETR's multi-scale and crop policy and flips, of an image with its boxes and masks (Carion et al., ECCV 2020)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flsl.config.detect import RecipeSettings


class Target(NamedTuple):
    """The objects of an image.

    Attributes:
        boxes: (n, 4) x0, y0, x1, y1 in pixels, float32.
        labels: (n,) classes from 1, int64.
        masks: (n, height, width) uint8, or None where only boxes are wanted.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


class Geometry(NamedTuple):
    """What happens to an image: cut ``crop`` out, resize it to ``size``, mirror it.

    Attributes:
        crop: left, top, right, bottom in whole pixels of the image.
        size: width, height.
        flip: whether left and right change places.
    """

    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool


def fitted(width: int, height: int, short: int, long: int) -> tuple[int, int]:
    """Return the (width, height) whose short side is ``short``, or less so that the long one is at most ``long``."""
    scale = min(short / min(width, height), long / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def draw(rng: np.random.Generator, width: int, height: int, recipe: RecipeSettings) -> Geometry:
    """Draw an image's training geometry.

    With probability ``recipe.crop`` the image is taken as resized to one of ``crop_short_sides``, a rectangle with
    sides in ``crop_range`` is cut out, and that is resized to one of ``short_sides``; otherwise the whole image is.
    """
    flip = bool(rng.random() < recipe.flip)
    crop = (0, 0, width, height)
    if rng.random() < recipe.crop:
        first = fitted(width, height, int(rng.choice(recipe.crop_short_sides)), recipe.long_side)
        low, high = recipe.crop_range
        sides = [int(rng.integers(min(low, side), min(high, side) + 1)) for side in first]
        corner = [int(rng.integers(0, side - cut + 1)) for side, cut in zip(first, sides, strict=True)]
        # one resampling instead of two: the rectangle in the image's own pixels
        scale = (width / first[0], height / first[1])
        left, top = (round(c * s) for c, s in zip(corner, scale, strict=True))
        crop_width, crop_height = (max(1, round(c * s)) for c, s in zip(sides, scale, strict=True))
        left, top = min(left, width - 1), min(top, height - 1)
        crop = (left, top, min(left + crop_width, width), min(top + crop_height, height))
    size = fitted(crop[2] - crop[0], crop[3] - crop[1], int(rng.choice(recipe.short_sides)), recipe.long_side)
    return Geometry(crop, size, flip)


def apply_image(image: Image.Image, geometry: Geometry) -> Tensor:
    """Return the changed RGB image, (3, height, width) uint8 (bilinear, antialiased)."""
    changed = image.crop(geometry.crop).resize(geometry.size, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(changed)).permute(2, 0, 1)
    return (pixels.flip(2) if geometry.flip else pixels).contiguous()


def apply_target(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], masks: NDArray[np.uint8] | None, geometry: Geometry
) -> Target:
    """Return the objects where they lie in the changed image; those of which nothing is left are gone.

    Args:
        boxes: (n, 4) x0, y0, x1, y1.
        labels: (n,).
        masks: (n, height, width), or None. With masks, a box is cut to what of its mask is left.
        geometry: what happens to the image.
    """
    left, top, right, bottom = geometry.crop
    width, height = geometry.size
    moved = torch.from_numpy(boxes).float().reshape(-1, 4) - torch.tensor([left, top, left, top]).float()
    cut = (right - left, bottom - top)
    moved[:, 0::2] = moved[:, 0::2].clamp(0, cut[0])
    moved[:, 1::2] = moved[:, 1::2].clamp(0, cut[1])
    scale = torch.tensor([width / cut[0], height / cut[1]] * 2)
    resized: Tensor | None = None
    if masks is not None:
        part = masks[:, top:bottom, left:right]
        whole = cut == (masks.shape[2], masks.shape[1])
        if not whole:
            moved = _tightened(moved, torch.from_numpy(part))
        columns, rows = nearest(cut[0], width), nearest(cut[1], height)
        # rows are copied whole: columns, one by one, go first while there are fewer rows, and mirrored on the way
        resized = torch.from_numpy(part.take(columns[::-1] if geometry.flip else columns, 2).take(rows, 1))
    moved = moved * scale
    kept = ((moved[:, 2:] - moved[:, :2]) > 0.5).all(1)
    if resized is not None:
        kept &= resized.flatten(1).amax(1) > 0
        resized = resized if kept.all() else resized[kept]
    moved = moved[kept]
    if geometry.flip:
        moved[:, [0, 2]] = width - moved[:, [2, 0]]
    return Target(moved, torch.from_numpy(labels)[kept], resized)


def nearest(size: int, out: int) -> NDArray[np.int64]:
    """Return the pixels, (out,), that nearest-neighbour resizing takes from a side of ``size`` pixels.

    They are those of torch's ``F.interpolate``, which needs three times as long as taking them here does.
    """
    # in float32, as torch rounds
    places: NDArray[np.int64] = np.floor(np.arange(out, dtype=np.float32) * np.float32(size / out)).astype(np.int64)
    return places


def _tightened(boxes: Tensor, masks: Tensor) -> Tensor:
    """Return the boxes cut to their masks' extent (a pixel wide box where a mask is empty, which is dropped later)."""
    columns, rows = masks.any(1), masks.any(2)
    extent = torch.stack(
        [
            columns.float().argmax(1),
            rows.float().argmax(1),
            columns.shape[1] - columns.flip(1).float().argmax(1),
            rows.shape[1] - rows.flip(1).float().argmax(1),
        ],
        1,
    ).float()
    low, high = torch.maximum(boxes[:, :2], extent[:, :2]), torch.minimum(boxes[:, 2:], extent[:, 2:])
    return torch.cat([low, high], 1)

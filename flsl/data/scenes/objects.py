"""The objects of the scenes: ten classes, each a texture and a shape, so that colour says nothing about the class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsl.data.scenes.backdrop import LUMINANCE, draw_colour
from flsl.data.scenes.noise import Floats
from flsl.data.scenes.shapes import REACH, SHAPES
from flsl.data.scenes.textures import TEXTURES, Texture, draw_texture

CLASSES: tuple[str, ...] = tuple(f"{texture}-{shape}" for texture, shape in zip(TEXTURES, SHAPES, strict=True))
"""Class names by label, e.g. ``stripes-bar``."""

UNIT = 0.245
"""Base period of a texture in radii: an eighth of the image's side for an object that fills the image."""


@dataclass(frozen=True)
class Look:
    """What stays of an object while it moves.

    Attributes:
        label: its class, an index into :data:`CLASSES`.
        texture: its texture, in coordinates of one radius.
        middle: the mean of its two colours (3,), 0 to 1.
        half: half of their difference (3,).
        aspect: its shape's stretch.
    """

    label: int
    texture: Texture
    middle: Floats
    half: Floats
    aspect: float


@dataclass(frozen=True)
class Pose:
    """Where an object is: centre and radius in pixels (x right, y down), angle in radians (clockwise as seen)."""

    x: float
    y: float
    radius: float
    angle: float


def draw_look(rng: np.random.Generator, label: int, unit: float = UNIT) -> Look:
    """Draw texture, colours and stretch of an object of class ``label``; ``unit`` is the texture's period in radii."""
    aspect = float(rng.uniform(0.85, 1.18))
    texture = draw_texture(rng, tuple(TEXTURES)[label], unit)
    luminance = rng.uniform(0.5 - LUMINANCE, 0.5 + LUMINANCE)
    # either tone may be the light one, and the two never come near each other
    difference = rng.uniform(0.18, 0.34) * rng.choice((-1, 1))
    first, second = draw_colour(rng, luminance + difference), draw_colour(rng, luminance - difference)
    return Look(label, texture, (first + second) / 2, (first - second) / 2, aspect)


@dataclass(frozen=True)
class Stamp:
    """An object made ready to be painted.

    Attributes:
        rows, columns: the part of the canvas that it touches.
        alpha: how much of each pixel it covers (rows, columns), 0 to 1.
        colour: its colours there (rows, columns, 3).
    """

    rows: slice
    columns: slice
    alpha: Floats
    colour: Floats

    def paint(self, canvas: Floats) -> None:
        """Lay the object over ``canvas`` (height, width, 3), in place."""
        below = canvas[self.rows, self.columns]
        below += self.alpha[..., None] * (self.colour - below)

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Return the pixels of the whole canvas (height, width) that the object covers by more than half."""
        mask = np.zeros((height, width), bool)
        mask[self.rows, self.columns] = self.alpha > 0.5
        return mask


def stamp(look: Look, pose: Pose, height: int, width: int) -> Stamp:
    """Return the object as it appears on a canvas of that size; a stamp off the canvas is empty."""
    reach = pose.radius * REACH * max(look.aspect, 1 / look.aspect) + 1
    rows, columns = _span(pose.y, reach, height), _span(pose.x, reach, width)
    dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - pose.y)
    dx = np.arange(columns.start, columns.stop, dtype=np.float32)[None] + np.float32(0.5 - pose.x)
    cos, sin = np.float32(np.cos(pose.angle) / pose.radius), np.float32(np.sin(pose.angle) / pose.radius)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    aspect = np.float32(look.aspect)
    inside = SHAPES[tuple(SHAPES)[look.label]](u * aspect, v / aspect)
    # an edge 1.2 pixels wide is soft enough not to show stairs
    alpha = np.clip(inside * np.float32(pose.radius / 1.2) + np.float32(0.5), 0, 1)
    colour = look.middle + look.texture(u, v)[..., None] * look.half
    return Stamp(rows, columns, alpha, colour)


def _span(centre: float, reach: float, size: int) -> slice:
    start = min(max(int(np.floor(centre - reach)), 0), size)
    return slice(start, min(max(int(np.ceil(centre + reach)), start), size))


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the box (x0, y0, x1, y1), right and bottom exclusive, of a mask's pixels; None where it has none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

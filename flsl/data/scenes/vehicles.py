"""Cars, trucks and buses as seen from above, told apart by length, outline and what is on their roofs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flsl.data.scenes.noise import Floats
from flsl.data.scenes.textures import Texture, draw_texture

CATEGORIES = ("car", "truck", "bus")
SIZES = ((4.6, 1.9), (9.0, 2.5), (12.0, 2.6))
"""Length and width of each category, in metres."""
_GLASS = np.array([0.1, 0.11, 0.13], np.float32)
_ROOFS = ("stripes", "checks", "stripes")
_CORNER = (0.6, 0.15, 0.35)


@dataclass(frozen=True)
class Vehicle:
    """A vehicle as drawn: category (index into :data:`CATEGORIES`), the two colours (3,) and the roof's texture."""

    category: int
    paint: Floats
    roof: Floats
    texture: Texture


def draw_vehicle(rng: np.random.Generator, category: int) -> Vehicle:
    """Draw the colours of a vehicle; colours say nothing about the category."""
    luminance = rng.uniform(0.62, 0.9) if rng.random() < 0.6 else rng.uniform(0.14, 0.26)
    hue = rng.uniform(0, 2 * np.pi) - 2 * np.pi / 3 * np.arange(3)
    paint = luminance + 0.7 * min(luminance, 1 - luminance) * rng.random() * np.cos(hue)
    roof = paint * 0.55 if luminance > 0.5 else paint + 0.3
    texture = draw_texture(rng, _ROOFS[category], 1.35)
    return Vehicle(category, paint.astype(np.float32), roof.astype(np.float32), texture)


def cover(vehicle: Vehicle, along: Floats, across: Floats, metre: float) -> Floats:
    """Return how much of each place the vehicle covers (0 to 1); places in metres from its centre, x to its front.

    Args:
        vehicle: the vehicle.
        along: metres ahead of its centre.
        across: metres to its right, of equal shape.
        metre: pixels a metre, for the softness of the edge.
    """
    length, width = SIZES[vehicle.category]
    corner = _CORNER[vehicle.category]
    dx = np.maximum(np.abs(along) - (length / 2 - corner), 0)
    dy = np.maximum(np.abs(across) - (width / 2 - corner), 0)
    distance = corner - np.hypot(dx, dy)
    if vehicle.category == 1:
        # between the cab and the box there is a gap that shows the road
        gap = np.abs(along - (length / 2 - 2.3)) - 0.2
        distance = np.minimum(distance, np.maximum(gap, 0.6 - np.abs(across)))
    covered: Floats = np.clip(distance * np.float32(metre) + 0.5, 0, 1)
    return covered


def colours(vehicle: Vehicle, along: Floats, across: Floats) -> Floats:
    """Return the vehicle's colours (…, 3) at the places of :func:`cover`."""
    length, width = SIZES[vehicle.category]
    front = length / 2 - along
    inner = np.abs(across) < 0.42 * width
    if vehicle.category == 0:
        glass = inner & (((front > 1.1) & (front < 1.75)) | ((front > 3.5) & (front < 3.95)))
        tone = np.ones_like(along)
    elif vehicle.category == 1:
        glass = inner & (front > 0.35) & (front < 0.85)
        tone = np.where(front > 2.4, vehicle.texture(along, across), np.float32(1))
    else:
        glass = inner & (front > 0.2) & (front < 0.75)
        aisle = inner & (front > 1.4) & (front < length - 0.7)
        tone = np.where(aisle, vehicle.texture(along, across), np.float32(1))
    half = (vehicle.paint - vehicle.roof) / 2
    painted = vehicle.roof + half + tone[..., None] * half
    shown: Floats = np.where(glass[..., None], _GLASS, painted)
    return shown


def headlights(vehicle: Vehicle, along: Floats, across: Floats) -> Floats:
    """Return the brightness (0 to 1) that the vehicle's lamps lend to each place."""
    length, width = SIZES[vehicle.category]
    ahead = along - length / 2
    lamps = np.zeros_like(along)
    for side in (-0.33, 0.33):
        aside = across - side * width
        beam = np.exp(-((aside / (0.45 + 0.12 * np.maximum(ahead, 0))) ** 2) - np.maximum(ahead, 0) / 2.2)
        lamps += np.where(ahead > -0.3, beam, 0)
    lit: Floats = np.minimum(lamps, 1)
    return lit

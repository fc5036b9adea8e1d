"""The ten textures: patterns between two tones, fixed to their object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flsl.data.scenes.noise import Floats, draw_lattice, grain, smooth_noise

_TURN = 2 * np.pi


@dataclass(frozen=True)
class Texture:
    """A texture as drawn for one object; call it with object coordinates for its tone, -1 dark to 1 light.

    Attributes:
        name: a key of :data:`TEXTURES`.
        period: the pattern's base period, in the unit of the coordinates.
        grain: the size of a speck, in the same unit.
        phase: the two phases, in radians.
        spokes: the number of spokes, for ``spokes``.
        lattice: random values (64, 64), for ``speckle`` and ``blotches``.
    """

    name: str
    period: float
    grain: float
    phase: tuple[float, float]
    spokes: int
    lattice: Floats

    def __call__(self, u: Floats, v: Floats) -> Floats:
        """Return the tone in [-1, 1] at coordinates ``u``, ``v`` whose origin is the object's centre."""
        return TEXTURES[self.name](self, u, v)


def draw_texture(rng: np.random.Generator, name: str, unit: float) -> Texture:
    """Draw period (about ``unit``, ±20 % twice), phases and noise of the texture called ``name``."""
    period = unit * float(rng.uniform(0.85, 1.2, 2).prod())
    a, b = rng.uniform(0, _TURN, 2)
    spokes = round(float(rng.uniform(7, 10)))
    return Texture(name, period, unit / 6, (float(a), float(b)), spokes, draw_lattice(rng))


def _contrast(value: Floats, gain: float) -> Floats:
    steep: Floats = np.tanh(np.float32(gain) * value)
    return steep


def _waves(t: Texture, cycles: float, x: Floats, phase: float) -> Floats:
    wave: Floats = np.sin(np.float32(_TURN / t.period * cycles) * x + np.float32(phase))
    return wave


def _stripes(t: Texture, u: Floats, v: Floats) -> Floats:
    return _contrast(_waves(t, 1, u, t.phase[0]), 2)


def _checks(t: Texture, u: Floats, v: Floats) -> Floats:
    return _contrast(_waves(t, 0.75, u, t.phase[0]) * _waves(t, 0.75, v, t.phase[1]), 4)


def _dots(t: Texture, u: Floats, v: Floats) -> Floats:
    return _contrast(_waves(t, 0.8, u, t.phase[0]) + _waves(t, 0.8, v, t.phase[1]) - 0.8, 3)


def _rings(t: Texture, u: Floats, v: Floats) -> Floats:
    return _contrast(_waves(t, 1, np.hypot(u, v), t.phase[0]), 2)


def _zigzag(t: Texture, u: Floats, v: Floats) -> Floats:
    swing = np.float32(1.6 * t.period / (_TURN * 0.8)) * _waves(t, 0.5, v, t.phase[1])
    return _contrast(_waves(t, 0.8, u + swing, t.phase[0]), 2)


def _bricks(t: Texture, u: Floats, v: Floats) -> Floats:
    course = v / np.float32(0.75 * t.period) + np.float32(t.phase[1])
    along = u / np.float32(1.5 * t.period) + np.float32(t.phase[0]) + 0.5 * (np.floor(course) % 2)
    mortar = (along % 1 < 0.16) | (course % 1 < 0.3)
    return np.where(mortar, np.float32(-1), np.float32(1))


def _speckle(t: Texture, u: Floats, v: Floats) -> Floats:
    return _contrast(grain(t.lattice, u / np.float32(t.grain), v / np.float32(t.grain)), 1.2)


def _spokes(t: Texture, u: Floats, v: Floats) -> Floats:
    return _contrast(np.sin(t.spokes * np.arctan2(v, u) + np.float32(t.phase[0])), 2)


def _grid(t: Texture, u: Floats, v: Floats) -> Floats:
    return _contrast(np.maximum(_waves(t, 0.8, u, t.phase[0]), _waves(t, 0.8, v, t.phase[1])) - 0.75, 5)


def _blotches(t: Texture, u: Floats, v: Floats) -> Floats:
    return _contrast(smooth_noise(t.lattice, u / np.float32(t.period), v / np.float32(t.period)), 2)


TEXTURES: dict[str, Callable[[Texture, Floats, Floats], Floats]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "waves": _zigzag,
    "bricks": _bricks,
    "speckle": _speckle,
    "spokes": _spokes,
    "grid": _grid,
    "blotches": _blotches,
}

"""The ten outlines, each as a function that is positive inside: its value is about the distance to the edge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flsl.data.scenes.noise import Floats

REACH = 1.25
"""No outline reaches farther than this from its centre, in radii."""


def _bar(x: Floats, y: Floats) -> Floats:
    inside: Floats = 1 - np.maximum(np.abs(x), 1.9 * np.abs(y))
    return inside


def _square(x: Floats, y: Floats) -> Floats:
    inside: Floats = 0.88 - np.maximum(np.abs(x), np.abs(y))
    return inside


def _disc(x: Floats, y: Floats) -> Floats:
    inside: Floats = 1 - np.hypot(x, y)
    return inside


def _annulus(x: Floats, y: Floats) -> Floats:
    r = np.hypot(x, y)
    inside: Floats = np.minimum(1 - r, r - 0.38)
    return inside


def _ellipse(x: Floats, y: Floats) -> Floats:
    inside: Floats = 1 - np.hypot(x, 1.6 * y)
    return inside


def _polygon(x: Floats, y: Floats, corners: int) -> Floats:
    half = np.float32(np.pi / corners)
    from_side = np.arctan2(y, x) % (2 * half) - half
    inside: Floats = 1 - 0.98 * np.hypot(x, y) * np.cos(from_side) / np.cos(half)
    return inside


def _triangle(x: Floats, y: Floats) -> Floats:
    inside: Floats = 0.8 * _polygon(x, y, 3)
    return inside


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    inside: Floats = np.maximum(np.minimum(1 - x, 0.42 - y), np.minimum(1 - y, 0.42 - x))
    return inside


def _flower(x: Floats, y: Floats) -> Floats:
    inside: Floats = 0.78 + 0.22 * np.cos(5 * np.arctan2(y, x)) - np.hypot(x, y)
    return inside


def _hexagon(x: Floats, y: Floats) -> Floats:
    inside: Floats = _polygon(x, y, 6)
    return inside


def _crescent(x: Floats, y: Floats) -> Floats:
    inside: Floats = np.minimum(1 - np.hypot(x, y), np.hypot(x - np.float32(0.55), y) - 0.6)
    return inside


SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "bar": _bar,
    "square": _square,
    "disc": _disc,
    "annulus": _annulus,
    "ellipse": _ellipse,
    "triangle": _triangle,
    "cross": _cross,
    "flower": _flower,
    "hexagon": _hexagon,
    "crescent": _crescent,
}

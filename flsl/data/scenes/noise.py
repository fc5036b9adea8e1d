"""Random values that are functions of place: what lets a texture move, turn and grow with its object."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
"""Numbers of single precision; NumPy's stubs lose track of that in arithmetic with Python's numbers."""
_CELLS = 64


def draw_lattice(rng: np.random.Generator) -> Floats:
    """Draw the standard normal values (64, 64) of a lattice that repeats beyond its edges."""
    return rng.standard_normal((_CELLS, _CELLS), dtype=np.float32)


def smooth_noise(lattice: Floats, x: Floats, y: Floats) -> Floats:
    """Interpolate the lattice smoothly at ``x``, ``y`` (any equal shape, in cells): mean 0, deviation below 1."""
    column, row = np.floor(x), np.floor(y)
    right, down = _ease(x - column), _ease(y - row)
    j, i = column.astype(np.intp) % _CELLS, row.astype(np.intp) % _CELLS
    j1, i1 = (j + 1) % _CELLS, (i + 1) % _CELLS
    above = lattice[i, j] * (1 - right) + lattice[i, j1] * right
    below = lattice[i1, j] * (1 - right) + lattice[i1, j1] * right
    blend: Floats = above * (1 - down) + below * down
    return blend


def grain(lattice: Floats, x: Floats, y: Floats) -> Floats:
    """Return the lattice's value of the cell that each ``x``, ``y`` (in cells) lies in: noise without smoothness."""
    cells: Floats = lattice[np.floor(y).astype(np.intp) % _CELLS, np.floor(x).astype(np.intp) % _CELLS]
    return cells


def _ease(fraction: Floats) -> Floats:
    eased: Floats = fraction * fraction * (3 - 2 * fraction)
    return eased


@cache
def pixel_centres(height: int, width: int) -> tuple[Floats, Floats]:
    """Return the pixel centres' x (1, width) and y (height, 1): the first pixel's centre is 0.5."""
    return np.arange(width, dtype=np.float32)[None] + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5


def halve(canvas: Floats) -> Floats:
    """Return the mean of each 2×2 pixels of a canvas (2·height, 2·width, …)."""
    halved: Floats = (canvas[::2, ::2] + canvas[1::2, ::2] + canvas[::2, 1::2] + canvas[1::2, 1::2]) / 4
    return halved

"""What is behind the objects and over the whole image: backgrounds, light, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsl.data.scenes.noise import Floats, draw_lattice, pixel_centres, smooth_noise

# How much the nuisances vary decides whether a demo's few thousand images teach anything: with stronger colours and
# brightness (chroma 0.35, luminance 0.15) self-supervised features follow those instead of the patterns.
CHROMA = 0.12
LUMINANCE = 0.06
CONTRAST = 0.2
LIGHTING = 0.25
NOISE = 0.02


def draw_colour(rng: np.random.Generator, luminance: float) -> Floats:
    """Draw an RGB colour (3,) of mean ``luminance`` with a random hue and a faint saturation."""
    hue = rng.uniform(0, 2 * np.pi) - 2 * np.pi / 3 * np.arange(3)
    colour: Floats = (luminance + CHROMA / 2 * rng.random() * np.cos(hue)).astype(np.float32)
    return colour


@dataclass(frozen=True)
class Backdrop:
    """A background that extends without end: plain, clouded, striped or rough.

    Attributes:
        kind: 0 plain, 1 clouds, 2 broad stripes, 3 rough.
        size: the length in pixels that counts as an image's side.
        angle, wavelength, phase: of the stripes; the wavelength in sides.
        lattices: the values of coarse and of fine noise, each (64, 64).
        middle, half: mean and half difference of its two colours, each (3,).
    """

    kind: int
    size: float
    angle: float
    wavelength: float
    phase: float
    lattices: tuple[Floats, Floats]
    middle: Floats
    half: Floats

    def paint(self, x: Floats, y: Floats) -> Floats:
        """Return the colours (height, width, 3) at pixel positions ``x``, ``y`` that broadcast to (height, width)."""
        x, y = np.broadcast_arrays(x / np.float32(self.size), y / np.float32(self.size))
        pattern = self._pattern(x, y)
        colours: Floats = self.middle + pattern[..., None] * self.half
        return colours

    def _pattern(self, x: Floats, y: Floats) -> Floats:
        coarse, fine = self.lattices
        if self.kind == 0:
            return np.zeros(x.shape, np.float32)
        if self.kind == 1:
            return np.tanh(smooth_noise(coarse, 3 * x, 3 * y))
        if self.kind == 2:
            across = np.float32(np.cos(self.angle)) * x + np.float32(np.sin(self.angle)) * y
            stripes: Floats = np.sin(np.float32(2 * np.pi / self.wavelength) * across + np.float32(self.phase))
            return stripes
        rough = smooth_noise(coarse, 5 * x, 5 * y) + 0.5 * smooth_noise(fine, 12 * x, 12 * y)
        return 0.6 * np.tanh(rough)


def draw_backdrop(rng: np.random.Generator, size: float, kinds: tuple[int, ...] = (0, 1, 2, 3)) -> Backdrop:
    """Draw a background of one of ``kinds``; ``size`` is the image's side in pixels."""
    luminance, contrast = rng.uniform(0.5 - 1.6 * LUMINANCE, 0.5 + 1.6 * LUMINANCE), rng.uniform(0, CONTRAST)
    first, second = draw_colour(rng, luminance + contrast / 2), draw_colour(rng, luminance - contrast / 2)
    return Backdrop(
        kind=kinds[rng.integers(len(kinds))],
        size=size,
        angle=float(rng.uniform(0, 2 * np.pi)),
        wavelength=float(rng.uniform(0.4, 0.7)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        lattices=(draw_lattice(rng), draw_lattice(rng)),
        middle=(first + second) / 2,
        half=(first - second) / 2,
    )


@dataclass(frozen=True)
class Light:
    """Light that falls off across the image: its overall gain, and its slope's strength and direction."""

    gain: float
    strength: float
    angle: float

    def develop(self, canvas: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return the canvas (height, width, 3) in this light, with the camera's noise, as 8-bit RGB."""
        height, width = canvas.shape[:2]
        x, y = pixel_centres(height, width)
        slope = np.float32(np.cos(self.angle)) * (x / width - 0.5) + np.float32(np.sin(self.angle)) * (y / height - 0.5)
        shade = np.float32(self.gain) * (1 + np.float32(2 * self.strength) * slope)
        lit = canvas * shade[..., None]
        lit += NOISE * rng.standard_normal(lit.shape, dtype=np.float32)
        image: NDArray[np.uint8] = (np.clip(lit, 0, 1) * 255).astype(np.uint8)
        return image


def draw_light(rng: np.random.Generator) -> Light:
    """Draw the light of an image or of a video."""
    return Light(
        gain=float(rng.uniform(1 - LUMINANCE, 1 + LUMINANCE)),
        strength=float(rng.uniform(0, LIGHTING)),
        angle=float(rng.uniform(0, 2 * np.pi)),
    )

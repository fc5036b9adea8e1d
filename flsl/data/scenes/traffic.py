"""A stretch of road with its traffic, and the drone's camera over it: everything as a function of the frame's number.

Places are in metres in the road's own coordinates: ``s`` along it, ``t`` across it (0 in its middle).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flsl.data.scenes.backdrop import Light, draw_light
from flsl.data.scenes.noise import Floats, draw_lattice
from flsl.data.scenes.vehicles import SIZES, Vehicle, draw_vehicle

LANES = (-5.6, -1.9, 1.9, 5.6)
METRES_ACROSS = {"low": 38.0, "medium": 52.0, "high": 68.0}
"""Metres across a frame's width, by the drone's altitude."""
_SHARES = (0.66, 0.2, 0.14)  # of cars, trucks, buses


@dataclass(frozen=True)
class Driven:
    """A vehicle in traffic: at ``s + speed · frame``, driving towards growing ``s`` where ``speed`` > 0."""

    vehicle: Vehicle
    s: float
    t: float
    speed: float
    sway: float

    def place(self, frame: int) -> tuple[float, float, float]:
        """Return ``s``, ``t`` and the heading (0 or π, and a little) in frame ``frame``."""
        wave = 0.05 * frame + self.sway
        heading = 0.03 * float(np.cos(wave)) + (0.0 if self.speed > 0 else float(np.pi))
        return self.s + self.speed * frame, self.t + 0.25 * float(np.sin(wave)), heading


@dataclass(frozen=True)
class Parked:
    """A car park beside the road: its centre, half length, half width, and the vehicles in it with their places."""

    s: float
    t: float
    half: tuple[float, float]
    vehicles: tuple[tuple[Vehicle, float, float], ...]


@dataclass(frozen=True)
class Tree:
    """A tree's crown over the roadside: place, radius in metres, and where in the noise its outline starts."""

    s: float
    t: float
    radius: float
    start: float


@dataclass(frozen=True)
class Camera:
    """The drone: where it looks in a frame, with a slow drift and a little sway."""

    across: float
    angle: float
    drift: float
    offset: float
    phase: float

    def view(self, frame: int) -> tuple[float, float, float]:
        """Return the ``s`` and ``t`` of the frame's centre and the road's angle in the frame, in radians."""
        wave = 0.09 * frame + self.phase
        s = self.drift * frame + 0.8 * float(np.sin(wave))
        return s, self.offset + 0.6 * float(np.cos(0.7 * wave)), self.angle + 0.03 * float(np.sin(0.6 * wave))


@dataclass(frozen=True)
class Traffic:
    """All that is in a sequence; see the parts."""

    weather: str
    camera: Camera
    light: Light
    lattices: tuple[Floats, Floats]
    driven: tuple[Driven, ...]
    parked: Parked | None
    trees: tuple[Tree, ...]
    bridge: tuple[float, float] | None
    """Start and end of the bridge over the road along ``s``."""


def draw_traffic(rng: np.random.Generator, frames: int, weather: str, altitude: str, index: int) -> Traffic:
    """Draw a sequence: every second one has a car park (to be ignored), the others a bridge over the road."""
    across = METRES_ACROSS[altitude]
    side = float(rng.choice((-1, 1)))
    camera = Camera(
        across=across,
        angle=float(rng.uniform(-0.4, 0.4)),
        drift=float(rng.uniform(0.06, 0.2)) * float(rng.choice((-1, 1))),
        offset=side * float(rng.uniform(1.5, 3)),
        phase=float(rng.uniform(0, 2 * np.pi)),
    )
    # from the first to the last place that the camera can see
    ends = (0.0, camera.drift * frames)
    first, last = min(ends) - 0.7 * across, max(ends) + 0.7 * across
    middle = camera.drift * frames / 2
    parked = bridge = None
    if index % 2 == 0:
        parked = _draw_car_park(rng, middle + float(rng.uniform(-0.15, 0.15)) * across, side)
    else:
        start = middle + float(rng.uniform(-0.2, 0.2)) * across
        bridge = (start, start + float(rng.uniform(4.5, 7)))
    return Traffic(
        weather=weather,
        camera=camera,
        light=draw_light(rng),
        lattices=(draw_lattice(rng), draw_lattice(rng)),
        driven=tuple(_draw_lanes(rng, first, last, frames)),
        parked=parked,
        trees=tuple(_draw_trees(rng, first, last, parked)),
        bridge=bridge,
    )


def _draw_lanes(rng: np.random.Generator, first: float, last: float, frames: int) -> list[Driven]:
    driven = []
    for t in LANES:
        # a lane keeps one speed, so that nobody runs into anybody
        speed = float(rng.uniform(0.25, 0.6)) * (1 if t > 0 else -1)
        shift = speed * frames
        s = first - max(shift, 0) + float(rng.uniform(0, 8))
        while s < last - min(shift, 0):
            category = int(rng.choice(3, p=_SHARES))
            length = SIZES[category][0]
            vehicle = draw_vehicle(rng, category)
            driven.append(Driven(vehicle, s + length / 2, t, speed, float(rng.uniform(0, 2 * np.pi))))
            s += length + float(rng.uniform(2.5, 12))
    return driven


def _draw_car_park(rng: np.random.Generator, s: float, side: float) -> Parked:
    half, t = (8.5, 3.2), side * 13.5
    slots = np.arange(-half[0] + 1.7, half[0] - 1, 2.7)
    vehicles = tuple(
        (draw_vehicle(rng, 0), s + float(slot), t + float(rng.uniform(-0.4, 0.4)))
        for slot in slots
        if rng.random() < 0.75
    )
    return Parked(s, t, half, vehicles)


def _draw_trees(rng: np.random.Generator, first: float, last: float, parked: Parked | None) -> list[Tree]:
    trees = []
    s = first
    while s < last:
        radius, side = float(rng.uniform(1.8, 3.2)), float(rng.choice((-1, 1)))
        t = side * (7.6 + float(rng.uniform(-0.4, 0.9)) * radius)
        taken = parked is not None and side * parked.t > 0 and abs(s - parked.s) < parked.half[0] + radius
        if not taken:
            trees.append(Tree(s, t, radius, float(rng.uniform(0, 60))))
        s += float(rng.uniform(4, 16))
    return trees

"""Frames seen from above: the road, its traffic and what hides it, with each vehicle's box and how much is seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsl.data.scenes.noise import Floats, halve, pixel_centres, smooth_noise
from flsl.data.scenes.objects import tight_box
from flsl.data.scenes.traffic import Traffic, Tree
from flsl.data.scenes.vehicles import SIZES, Vehicle, colours, cover, headlights

_FINE = 2
"""Pixels of the canvas a pixel of the frame, each way: small vehicles need smooth edges."""
_ROAD = 7.6
_GRASS = np.array([0.4, 0.43, 0.37], np.float32)
_ASPHALT = np.array([0.37, 0.37, 0.39], np.float32)
_PAINT = np.array([0.78, 0.78, 0.75], np.float32)
_CONCRETE = np.array([0.56, 0.55, 0.53], np.float32)
_LEAVES = np.array([0.2, 0.27, 0.17], np.float32)
_FOG = np.array([0.72, 0.73, 0.75], np.float32)
_NIGHT = np.array([0.34, 0.36, 0.44], np.float32)


@dataclass(frozen=True)
class Seen:
    """A vehicle in a frame.

    Attributes:
        index: its index in the sequence's traffic.
        box: left, top, right, bottom in pixels of what is inside the frame, hidden parts included.
        outside: the share of the vehicle that is outside the frame.
        hidden: the share of its part inside the frame that something else hides.
    """

    index: int
    box: tuple[int, int, int, int]
    outside: float
    hidden: float


class _Canvas:
    """A frame being painted at twice its size; places come in metres along and across the road."""

    def __init__(self, traffic: Traffic, frame: int, height: int, width: int) -> None:
        self.height, self.width = _FINE * height, _FINE * width
        self.metre = self.width / traffic.camera.across
        self.s0, self.t0, self.angle = traffic.camera.view(frame)
        self.cos, self.sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        x, y = pixel_centres(self.height, self.width)
        dx, dy = (x - self.width / 2) / self.metre, (y - self.height / 2) / self.metre
        self.s = np.float32(self.cos) * dx + np.float32(self.sin) * dy + np.float32(self.s0)
        self.t = np.float32(self.cos) * dy - np.float32(self.sin) * dx + np.float32(self.t0)
        self.image = np.empty((self.height, self.width, 3), np.float32)
        self.glow = np.zeros((self.height, self.width), np.float32)

    def pixel(self, s: float, t: float) -> tuple[float, float]:
        """Return the canvas position x, y of a place."""
        ds, dt = (s - self.s0) * self.metre, (t - self.t0) * self.metre
        return self.cos * ds - self.sin * dt + self.width / 2, self.sin * ds + self.cos * dt + self.height / 2

    def window(self, s: float, t: float, reach: float) -> tuple[int, int, int, int]:
        """Return x0, y0, x1, y1 (whole pixels of the frame, not clipped) around a place, ``reach`` metres each way."""
        x, y = self.pixel(s, t)
        pixels = reach * self.metre
        low = [int(np.floor((centre - pixels) / _FINE)) * _FINE for centre in (x, y)]
        high = [int(np.ceil((centre + pixels) / _FINE)) * _FINE for centre in (x, y)]
        return low[0], low[1], high[0], high[1]

    def outside(self, window: tuple[int, int, int, int]) -> bool:
        """Say whether a window has no pixel on the canvas."""
        x0, y0, x1, y1 = window
        return x1 <= 0 or y1 <= 0 or x0 >= self.width or y0 >= self.height

    def around(self, window: tuple[int, int, int, int], s: float, t: float, heading: float) -> tuple[Floats, Floats]:
        """Return the metres ahead of and to the right of a place and heading, for each pixel of a window."""
        x, y = self.pixel(s, t)
        x0, y0, x1, y1 = window
        dx = (np.arange(x0, x1, dtype=np.float32)[None] + np.float32(0.5 - x)) / np.float32(self.metre)
        dy = (np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - y)) / np.float32(self.metre)
        cos, sin = np.float32(np.cos(self.angle + heading)), np.float32(np.sin(self.angle + heading))
        return cos * dx + sin * dy, cos * dy - sin * dx

    def clip(self, window: tuple[int, int, int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return a window's rows and columns on the canvas, and those within the window itself."""
        x0, y0, x1, y1 = window
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, self.width), min(y1, self.height)
        return (slice(top, bottom), slice(left, right)), (slice(top - y0, bottom - y0), slice(left - x0, right - x0))


def draw_frame(
    traffic: Traffic, frame: int, height: int, width: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[Seen], tuple[int, int, int, int] | None]:
    """Draw a frame (height, width, 3).

    Returns:
        the image; the vehicles on the road of which some part is in the frame; the box (left, top, right, bottom) of
        the car park, whose vehicles are not listed, or None where there is none in the frame.
    """
    canvas = _Canvas(traffic, frame, height, width)
    _paint_ground(canvas, traffic)
    hiding = np.zeros((canvas.height, canvas.width), np.float32)
    covers = _hiding(canvas, traffic)
    for area, alpha, _ in covers:
        hiding[area] = np.maximum(hiding[area], alpha)
    if traffic.parked is not None:
        for vehicle, s, t in traffic.parked.vehicles:
            _paint_vehicle(canvas, vehicle, s, t, np.pi / 2, None)
    seen = []
    lamps = traffic.weather == "night"
    for index, driven in enumerate(traffic.driven):
        s, t, heading = driven.place(frame)
        found = _paint_vehicle(canvas, driven.vehicle, s, t, heading, hiding, lamps)
        if found is not None:
            seen.append(Seen(index, *found))
    for area, alpha, shown in covers:
        below = canvas.image[area]
        below += alpha[..., None] * (shown - below)
    image = canvas.image
    if traffic.weather == "night":
        image = image * _NIGHT + (0.55 * canvas.glow * (1 - hiding))[..., None]
    elif traffic.weather == "fog":
        image = image * 0.5 + 0.5 * _FOG
    return traffic.light.develop(halve(image), rng), seen, _car_park_box(canvas, traffic)


def _paint_ground(canvas: _Canvas, traffic: Traffic) -> None:
    s, t = canvas.s, canvas.t
    coarse, fine = traffic.lattices
    rough = 0.06 * smooth_noise(coarse, s / 3, t / 3) + 0.04 * smooth_noise(fine, s * 1.3, t * 1.3)
    ground = _GRASS * (1 + 2 * rough[..., None])
    road = (np.abs(t) < _ROAD)[..., None]
    np.copyto(ground, _ASPHALT * (1 + 0.7 * rough[..., None]), where=road)
    if traffic.parked is not None:
        p = traffic.parked
        lot = (np.abs(s - p.s) < p.half[0]) & (np.abs(t - p.t) < p.half[1])
        np.copyto(ground, _ASPHALT * 1.15, where=lot[..., None])
    lane = np.abs(t)
    dashes = (np.abs(lane - 3.75) < 0.12) & (s % 6 < 2.6)
    edges = (np.abs(lane - (_ROAD - 0.25)) < 0.12) | (np.abs(lane - 0.15) < 0.1)
    np.copyto(ground, _PAINT, where=(dashes | edges)[..., None])
    canvas.image[:] = ground


def _paint_vehicle(
    canvas: _Canvas, vehicle: Vehicle, s: float, t: float, heading: float, hiding: Floats | None, lamps: bool = False
) -> tuple[tuple[int, int, int, int], float, float] | None:
    """Paint a vehicle and its shadow; return its box, share outside and share hidden, or None if it is not in sight."""
    reach = SIZES[vehicle.category][0] / 2 + 0.8
    window = canvas.window(s, t, reach + (5 if lamps else 0))
    if canvas.outside(window):
        return None
    along, across = canvas.around(window, s, t, heading)
    area, within = canvas.clip(window)
    shade = 0.4 * cover(vehicle, *canvas.around(window, s + 0.45, t + 0.45, heading), canvas.metre)[within]
    alpha = cover(vehicle, along, across, canvas.metre)
    below = canvas.image[area]
    below *= 1 - shade[..., None]
    inside = alpha[within]
    below += inside[..., None] * (colours(vehicle, along[within], across[within]) - below)
    if lamps:
        canvas.glow[area] = np.maximum(canvas.glow[area], headlights(vehicle, along[within], across[within]))
    box = tight_box(halve(inside) > 0.5)
    if hiding is None or box is None:
        return None
    hidden = float((inside * hiding[area]).sum() / inside.sum())
    left, top = area[1].start // _FINE, area[0].start // _FINE
    x0, y0, x1, y1 = box
    return (left + x0, top + y0, left + x1, top + y1), max(float(1 - inside.sum() / alpha.sum()), 0.0), hidden


def _hiding(canvas: _Canvas, traffic: Traffic) -> list[tuple[tuple[slice, slice], Floats, Floats]]:
    """Return what lies over the road, bottom to top: area of the canvas, how much it covers, colours."""
    covers = []
    if traffic.bridge is not None:
        start, end = traffic.bridge
        distance = np.minimum(canvas.s - start, end - canvas.s)
        alpha = np.clip(distance * np.float32(canvas.metre) + 0.5, 0, 1)
        rail = (distance < 0.5)[..., None]
        lane = (np.abs(canvas.s - (start + end) / 2) < 0.1) & (canvas.t % 4 < 2)
        shown = np.where(rail, _CONCRETE * 0.75, np.where(lane[..., None], _PAINT, _CONCRETE))
        covers.append(((slice(None), slice(None)), alpha, shown))
    covers.extend(made for tree in traffic.trees if (made := _crown(canvas, traffic, tree)) is not None)
    return covers


def _crown(canvas: _Canvas, traffic: Traffic, tree: Tree) -> tuple[tuple[slice, slice], Floats, Floats] | None:
    window = canvas.window(tree.s, tree.t, 1.4 * tree.radius)
    if canvas.outside(window):
        return None
    area, within = canvas.clip(window)
    u, v = (part[within] for part in canvas.around(window, tree.s, tree.t, 0.0))
    coarse, fine = traffic.lattices
    start = np.float32(tree.start)
    bumps = smooth_noise(coarse, 1.1 * u + start, 1.1 * v + start)
    distance = tree.radius * (1 + 0.12 * bumps) - np.hypot(u, v)
    leaves = smooth_noise(fine, 2.5 * u + start, 2.5 * v + start)
    shade = 1 + 0.45 * np.tanh(leaves) - 0.25 * (u + v) / np.float32(tree.radius)
    return area, np.clip(distance * np.float32(canvas.metre) + 0.5, 0, 1), _LEAVES * shade[..., None]


def _car_park_box(canvas: _Canvas, traffic: Traffic) -> tuple[int, int, int, int] | None:
    if traffic.parked is None:
        return None
    p = traffic.parked
    corners = (
        np.array([canvas.pixel(p.s + i * p.half[0], p.t + j * p.half[1]) for i in (-1, 1) for j in (-1, 1)]) / _FINE
    )
    size = np.array([canvas.width, canvas.height]) // _FINE
    low = np.clip(np.floor(corners.min(0)), 0, size).astype(int)
    high = np.clip(np.ceil(corners.max(0)), 0, size).astype(int)
    if ((high - low) < 8).any():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])

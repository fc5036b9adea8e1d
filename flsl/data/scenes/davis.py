"""The DAVIS 2017 layout: videos of objects that move, turn, grow and pass before one another, with indexed masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flsl.config.data import ScenesSettings
from flsl.data.palette import palette
from flsl.data.scenes.backdrop import Backdrop, Light, draw_backdrop, draw_light
from flsl.data.scenes.files import Task, cut, rng_of, save_jpeg
from flsl.data.scenes.noise import halve, pixel_centres
from flsl.data.scenes.objects import Look, Pose, draw_look, stamp

_FINE = 2  # pixels of the canvas a pixel of the frame: textures that move must not flicker


@dataclass(frozen=True)
class Way:
    """An object's way through the video; lengths in frame heights, time from 0 (first frame) to 1 (last).

    It goes from ``start`` to ``end`` with some sway, turns by ``turn`` radians, grows and shrinks by ``growth``, and
    where ``leaves`` is not 0 is thrown out of the frame (up for -1, down for 1) and comes back.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    radius: float
    growth: float
    angle: float
    turn: float
    phase: float
    leaves: int

    def pose(self, time: float, height: float) -> Pose:
        """Return where the object is at a time, in pixels of a frame ``height`` pixels high."""
        way = time * time * (3 - 2 * time)
        sway = 0.06 * np.sin(2 * np.pi * 1.5 * time)
        x = self.start[0] + way * (self.end[0] - self.start[0]) + sway * np.cos(self.phase)
        y = self.start[1] + way * (self.end[1] - self.start[1]) + sway * np.sin(self.phase)
        # wholly outside from about 0.6 to 0.84 of the time, after the objects have changed places
        y += self.leaves * 1.6 * np.exp(-(((time - 0.72) / 0.17) ** 4))
        radius = self.radius * (1 + self.growth * np.sin(np.pi * time))
        return Pose(float(x) * height, float(y) * height, float(radius) * height, self.angle + self.turn * time)


@dataclass(frozen=True)
class Video:
    """All that is in a sequence: objects from back to front with their ways, the background and how it moves."""

    looks: tuple[Look, ...]
    ways: tuple[Way, ...]
    backdrop: Backdrop
    light: Light
    pan: tuple[float, float]


def names(settings: ScenesSettings) -> list[str]:
    """Return the sequences' names."""
    return [f"scene-{index:02d}" for index in range(settings.davis_sequences)]


def splits(settings: ScenesSettings) -> dict[str, list[str]]:
    """Return the sequences' names by split."""
    # the evaluation needs `val`: it has the odd one
    half = settings.davis_sequences // 2
    return {"train": names(settings)[:half], "val": names(settings)[half:]}


def tasks(settings: ScenesSettings) -> list[Task]:
    """Return (sequence, first, last) pieces of the work."""
    pieces = cut(settings.davis_frames, 10)
    return [(sequence, *piece) for sequence in range(settings.davis_sequences) for piece in pieces]


def make(settings: ScenesSettings, folder: Path, task: Task) -> None:
    """Write the frames and masks of a piece."""
    sequence, first, last = task
    name = names(settings)[sequence]
    video = plan(settings, sequence)
    height, width = settings.davis_size, round(settings.davis_size * 854 / 480)
    for frame in range(first, last):
        time = frame / max(settings.davis_frames - 1, 1)
        image, mask = draw_frame(video, time, height, width, rng_of(settings.seed, "davis", sequence, frame))
        save_jpeg(folder / "JPEGImages/480p" / name / f"{frame:05d}.jpg", image)
        path = folder / "Annotations/480p" / name / f"{frame:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        indexed = Image.fromarray(mask, "P")
        indexed.putpalette(palette())
        indexed.save(path)


def finish(settings: ScenesSettings, folder: Path, results: list[None]) -> dict[str, int]:
    """Write the lists of sequences; return the counts of what was made."""
    lists = folder / "ImageSets/2017"
    lists.mkdir(parents=True)
    for split, members in splits(settings).items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in members), encoding="utf-8")
    return {"sequences": settings.davis_sequences, "frames_each": settings.davis_frames}


def plan(settings: ScenesSettings, sequence: int) -> Video:
    """Draw a sequence, by its index: two or three objects that change places; one leaves for a while."""
    rng = rng_of(settings.seed, "video", sequence)
    count = 2 + sequence % 2
    labels = rng.choice(settings.classes, count, replace=settings.classes < count)
    aspect = 854 / 480
    spots = [((k + 0.5) / count * aspect, 0.5 + float(rng.uniform(-0.16, 0.16))) for k in range(count)]
    leaver = int(rng.integers(count))
    ways = []
    for k in range(count):
        ways.append(
            Way(
                start=spots[k],
                end=spots[count - 1 - k] if count == 2 else spots[(k + 1) % count],
                radius=float(rng.uniform(0.22, 0.3)) * (1.1 if count == 2 else 1),
                growth=float(rng.uniform(0.1, 0.3)) * float(rng.choice((-1, 1))),
                angle=float(rng.uniform(0, 2 * np.pi)),
                turn=float(rng.uniform(0.6, 1.8)) * float(rng.choice((-1, 1))),
                phase=float(rng.uniform(0, 2 * np.pi)),
                leaves=int(rng.choice((-1, 1))) if k == leaver else 0,
            )
        )
    size = settings.davis_size * aspect
    angle, distance = rng.uniform(0, 2 * np.pi), float(rng.uniform(0.3, 0.7))
    return Video(
        looks=tuple(draw_look(rng, int(label)) for label in labels),
        ways=tuple(ways),
        backdrop=draw_backdrop(rng, _FINE * size, kinds=(1, 3)),  # that the camera moves must be seen
        light=draw_light(rng),
        pan=(distance * float(np.cos(angle)), distance * float(np.sin(angle))),
    )


def draw_frame(
    video: Video, time: float, height: int, width: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the frame (height, width, 3) at a time from 0 to 1, and its mask (height, width) of ids from 1."""
    tall, wide = _FINE * height, _FINE * width
    x, y = pixel_centres(tall, wide)
    shift = np.float32(time * tall)
    canvas = video.backdrop.paint(x + shift * np.float32(video.pan[0]), y + shift * np.float32(video.pan[1]))
    mask = np.zeros((height, width), np.uint8)
    for identity, (look, way) in enumerate(zip(video.looks, video.ways, strict=True), 1):
        made = stamp(look, way.pose(time, tall), tall, wide)
        made.paint(canvas)
        alpha = np.zeros((tall, wide), np.float32)
        alpha[made.rows, made.columns] = made.alpha
        mask[halve(alpha) > 0.5] = identity
    return video.light.develop(halve(canvas), rng), mask

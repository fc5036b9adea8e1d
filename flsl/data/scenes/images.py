"""The image folder: one object per image, for pretraining and the probes, with its box."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flsl.config.data import ScenesSettings
from flsl.data.scenes.backdrop import draw_backdrop, draw_light
from flsl.data.scenes.files import Task, cut, rng_of, save_jpeg
from flsl.data.scenes.noise import pixel_centres
from flsl.data.scenes.objects import CLASSES, Pose, draw_look, stamp, tight_box

SPLITS = ("train", "val")
Box = tuple[str, int, int, int, int]


def tasks(settings: ScenesSettings) -> list[Task]:
    """Return (split, first, last) pieces of the work."""
    counts = (settings.train_images, settings.val_images)
    return [(split, *piece) for split, count in enumerate(counts) for piece in cut(count, 100)]


def make(settings: ScenesSettings, folder: Path, task: Task) -> list[Box]:
    """Write the images of a piece; return the box of each object, by the image's path below ``folder``."""
    split, first, last = task
    boxes = []
    for index in range(first, last):
        label = index % settings.classes
        path = f"{SPLITS[split]}/{CLASSES[label]}/{index // settings.classes:05d}.jpg"
        image, box = draw_image(rng_of(settings.seed, "images", split, index), label, settings.image_size)
        save_jpeg(folder / path, image)
        boxes.append((path, *box))
    return boxes


def finish(settings: ScenesSettings, folder: Path, results: list[list[Box]]) -> dict[str, int]:
    """Write ``boxes.csv``; return the counts of what was made."""
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("path", "x0", "y0", "x1", "y1"))
        writer.writerows(sorted(box for piece in results for box in piece))
    return {"train": settings.train_images, "val": settings.val_images}


def draw_image(rng: np.random.Generator, label: int, size: int) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """Draw an image (size, size, 3) of one object of class ``label``; return it with the object's box.

    The object fills most of the image: radius 0.42 to 0.6 of the side, its centre near the image's.
    """
    radius = size * rng.uniform(0.42, 0.6)
    x, y = size / 2 + 0.7 * (size / 2 - 0.8 * radius) * rng.uniform(-1, 1, 2)
    pose = Pose(float(x), float(y), float(radius), float(rng.uniform(0, 2 * np.pi)))
    # one scale for all, an eighth of the side (three quarters of a patch of the demo's encoder), whatever the radius
    look = draw_look(rng, label, unit=size / 8 / radius)
    canvas = draw_backdrop(rng, size).paint(*pixel_centres(size, size))
    object_ = stamp(look, pose, size, size)
    object_.paint(canvas)
    box = tight_box(object_.mask(size, size))
    if box is None:
        raise AssertionError("an object of this radius is always in the image")
    return draw_light(rng).develop(canvas, rng), box

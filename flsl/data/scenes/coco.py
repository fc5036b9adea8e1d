"""The COCO layout: several objects per image, of many sizes, that hide one another; groups of small ones as crowds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsl.config.data import ScenesSettings
from flsl.data.scenes.backdrop import draw_backdrop, draw_light
from flsl.data.scenes.files import Task, cut, rng_of, save_jpeg
from flsl.data.scenes.noise import pixel_centres
from flsl.data.scenes.objects import CLASSES, UNIT, Look, Pose, Stamp, draw_look, stamp, tight_box
from flsl.data.scenes.outlines import run_lengths, segmentation

SPLITS = ("train", "val")
# ids have gaps, as COCO's own: who takes an id for an index finds out here
CATEGORY_IDS = (1, 2, 3, 5, 6, 7, 9, 10, 13, 15)
_LEAST_UNIT = 4.0  # pixels: a texture of a shorter period would not survive sampling and JPEG
_LEAST_VISIBLE = 0.35
_LEAST_PIXELS = 40
_LEAST_MEMBER = 12  # pixels of a crowd's member
_TRIES = 20
_CROWD_EVERY = 6  # images


@dataclass
class Placed:
    """An object in an image: its stamp, the pixels it has in the image, those of them that are seen, and its group."""

    label: int
    pose: Pose
    stamp: Stamp
    whole: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    crowd: bool


def tasks(settings: ScenesSettings) -> list[Task]:
    """Return (split, first, last) pieces of the work."""
    if not settings.coco_train_images:
        return []
    counts = (settings.coco_train_images, settings.coco_val_images)
    return [(split, *piece) for split, count in enumerate(counts) for piece in cut(count, 10)]


def make(settings: ScenesSettings, folder: Path, task: Task) -> tuple[int, list[dict[str, Any]]]:
    """Write the images of a piece; return its split and, for each image, its entry with its ``annotations``."""
    split, first, last = task
    entries = []
    for index in range(first, last):
        rng = rng_of(settings.seed, "coco", split, index)
        image, placed = draw_image(rng, settings.coco_size, settings.classes, crowd=index % _CROWD_EVERY == 2)
        # ids that are neither consecutive nor equal in both splits, as COCO's
        identity = 139 + 17 * index + 5 * split
        name = f"{identity:012d}.jpg"
        save_jpeg(folder / f"{SPLITS[split]}2017" / name, image)
        entry = {"id": identity, "file_name": name, "height": image.shape[0], "width": image.shape[1], "license": 1}
        entries.append({**entry, "annotations": annotate(placed)})
    return split, entries


def finish(settings: ScenesSettings, folder: Path, results: list[tuple[int, list[dict[str, Any]]]]) -> dict[str, int]:
    """Write the two annotation files; return the counts of what was made."""
    (folder / "annotations").mkdir()
    counts: dict[str, int] = {}
    for split, name in enumerate(SPLITS):
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for entry in (entry for piece, entries in results if piece == split for entry in entries):
            for annotation in entry.pop("annotations"):
                objects.append({"id": len(objects) + 1, "image_id": entry["id"], **annotation})
            images.append(entry)
        content = {
            "info": {"description": f"Made scenes, {name}"},
            "licenses": [{"id": 1, "name": "Made by flsl data scenes", "url": ""}],
            "images": images,
            "annotations": objects,
            "categories": [
                {"id": CATEGORY_IDS[label], "name": CLASSES[label], "supercategory": "object"}
                for label in range(settings.classes)
            ],
        }
        path = folder / "annotations" / f"instances_{name}2017.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        counts |= {name: len(images), f"{name}_objects": len(objects)}
    return counts


def draw_image(
    rng: np.random.Generator, size: int, classes: int, crowd: bool
) -> tuple[NDArray[np.uint8], list[Placed]]:
    """Draw an image (height, width, 3) of one to five objects, and where asked a crowd of small ones behind them."""
    long = round(size * rng.uniform(0.85, 1.15))
    short = round(long * rng.uniform(0.65, 1))
    height, width = (short, long) if rng.random() < 0.7 else (long, short)
    canvas = draw_backdrop(rng, long).paint(*pixel_centres(height, width))
    placed = _place_crowd(rng, height, width, int(rng.integers(classes))) if crowd else []
    for _ in range(rng.integers(1, 6)):
        _place(rng, placed, height, width, int(rng.integers(classes)))
    for one in placed:
        one.stamp.paint(canvas)
    return draw_light(rng).develop(canvas, rng), placed


def annotate(placed: list[Placed]) -> list[dict[str, Any]]:
    """Return COCO's annotation of each object, without its ids; a crowd is one annotation."""
    result = []
    for one in placed:
        if not one.crowd:
            result.append(_annotation(one.label, one.visible, crowd=False))
    crowd = [one for one in placed if one.crowd]
    if crowd:
        result.append(_annotation(crowd[0].label, np.logical_or.reduce([one.visible for one in crowd]), crowd=True))
    return result


def _annotation(label: int, visible: NDArray[np.bool_], crowd: bool) -> dict[str, Any]:
    box = tight_box(visible)
    if box is None:
        raise AssertionError("an object is placed only where it can be seen")
    x0, y0, x1, y1 = box
    return {
        "category_id": CATEGORY_IDS[label],
        "iscrowd": int(crowd),
        "area": int(visible.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": run_lengths(visible) if crowd else segmentation(visible),
    }


def _place(rng: np.random.Generator, placed: list[Placed], height: int, width: int, label: int) -> None:
    """Put an object in front of those already placed, where all stay visible enough; leave it out if none is found."""
    long = max(height, width)
    for _ in range(_TRIES):
        radius = long * float(np.exp(rng.uniform(np.log(0.1), np.log(0.36))))
        x, y = float(rng.uniform(0.1, 0.9) * width), float(rng.uniform(0.1, 0.9) * height)
        neighbours = [one for one in placed if not one.crowd]
        if neighbours and rng.random() < 0.6:
            # beside another object, so that they overlap often
            other = neighbours[rng.integers(len(neighbours))].pose
            direction, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.9) * (other.radius + radius)
            x, y = other.x + distance * float(np.cos(direction)), other.y + distance * float(np.sin(direction))
        pose = Pose(x, y, radius, float(rng.uniform(0, 2 * np.pi)))
        look = draw_look(rng, label, unit=max(UNIT, _LEAST_UNIT / radius))
        if _add(placed, look, pose, height, width):
            return


def _place_crowd(rng: np.random.Generator, height: int, width: int, label: int) -> list[Placed]:
    """Return a group of small objects of one class, spread around a point."""
    placed: list[Placed] = []
    long = max(height, width)
    middle = np.array([rng.uniform(0.25, 0.75) * width, rng.uniform(0.25, 0.75) * height])
    for _ in range(rng.integers(10, 19)):
        radius = long * float(rng.uniform(0.05, 0.075))
        x, y = middle + rng.normal(0, 0.12 * long, 2)
        pose = Pose(float(x), float(y), radius, float(rng.uniform(0, 2 * np.pi)))
        _add(placed, draw_look(rng, label, unit=_LEAST_UNIT / radius), pose, height, width, crowd=True)
    return placed


def _add(placed: list[Placed], look: Look, pose: Pose, height: int, width: int, crowd: bool = False) -> bool:
    """Add the object in front, hiding what is behind; change nothing where it or another were too little seen."""
    made = stamp(look, pose, height, width)
    mask = made.mask(height, width)
    if not (0 <= pose.x < width and 0 <= pose.y < height) or mask.sum() < (_LEAST_MEMBER if crowd else _LEAST_PIXELS):
        return False
    # a crowd is one thing: its members may vanish, but not the whole
    groups = [[one] for one in placed if not one.crowd]
    if not crowd:
        groups.append([one for one in placed if one.crowd])
    for group in groups:
        whole = sum(int(one.whole.sum()) for one in group)
        if sum(int((one.visible & ~mask).sum()) for one in group) < _LEAST_VISIBLE * whole:
            return False
    for one in placed:
        one.visible = one.visible & ~mask
    placed.append(Placed(look.label, pose, made, mask, mask, crowd))
    return True

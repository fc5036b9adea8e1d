"""DAVIS' layout, written to a folder for tests."""

from __future__ import annotations

import numpy as np
from PIL import Image

from flsl.config.data import DavisDataSettings


def write_mask(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + 247 * [200, 200, 200])  # a short palette would cut high ids
    image.save(path)


def data_of(root, **changes):
    return DavisDataSettings(root=str(root), **changes)


def write_davis(root, sequences, split="val", year=2017, frames=None):
    """Write masks, frames (noise unless given) and the split's list; ``sequences`` is ``{name: label maps}``."""
    rng = np.random.default_rng(0)
    for name, masks in sequences.items():
        for index, labels in enumerate(masks):
            write_mask(root / "Annotations" / "480p" / name / f"{index:05d}.png", labels)
            folder = root / "JPEGImages" / "480p" / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = frames[name][index] if frames else rng.integers(0, 255, (*labels.shape, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:05d}.jpg")
    lists = root / "ImageSets" / str(year)
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in sequences))
    return root


def write_predictions(root, sequences):
    for name, masks in sequences.items():
        for index, labels in enumerate(masks):
            write_mask(root / name / f"{index:05d}.png", labels)
    return root


def moving_discs(frames, objects, size=(48, 70), seed=0, radius=8):
    """Label maps of discs that wander, cover each other and may leave the image."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform((radius, radius), (height - radius, width - radius), (objects, 2))
    speed = rng.uniform(-3, 3, (objects, 2))
    masks = []
    for frame in range(frames):
        labels = np.zeros(size, np.uint8)
        for index in range(objects):
            cy, cx = centre[index] + frame * speed[index]
            labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = index + 1
        masks.append(labels)
    return masks

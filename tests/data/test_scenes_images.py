"""The image folder's pictures: their boxes, and that patterns, not colours, tell the class."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from flsl.data.scenes import objects
from flsl.data.scenes.files import rng_of, save_jpeg
from flsl.data.scenes.images import draw_image
from flsl.data.scenes.objects import CLASSES

SIZE = 48


def draw(count: int, split: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % len(CLASSES)
    return np.stack([draw_image(rng_of(0, "images", split, i), int(labels[i]), SIZE)[0] for i in range(count)]), labels


@pytest.fixture(scope="module")
def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return draw(2000, 0), draw(600, 1)


def mean_colour(images: np.ndarray) -> np.ndarray:
    return images.mean((1, 2))


def histogram_of_colours(images: np.ndarray) -> np.ndarray:
    """How often each colour occurs, its brightness taken away: 10 × 10 bins of red and green against the grey."""
    chroma = images.astype(float) - images.mean(3, keepdims=True)
    bins = np.clip((chroma[..., :2] + 40) // 8, 0, 9).astype(int)
    index = bins[..., 0] * 10 + bins[..., 1]
    return np.stack([np.bincount(one.ravel(), minlength=100) for one in index])


def histogram_of_rgb(images: np.ndarray) -> np.ndarray:
    """How often each of 8 × 8 × 8 colours occurs, brightness and all."""
    bins = images.astype(int) // 32
    index = bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2]
    return np.stack([np.bincount(one.ravel(), minlength=512) for one in index])


def pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(float)


def orientations(images: np.ndarray) -> np.ndarray:
    """Histograms of gradient directions in 6 × 6 cells: the patterns, without the colours."""
    dy, dx = np.gradient(images.mean(3), axis=(1, 2))
    strength, direction = np.hypot(dx, dy), (np.arctan2(dy, dx) % np.pi / np.pi * 9).astype(int) % 9
    cells = [(strength * (direction == k)).reshape(-1, 6, 8, 6, 8).sum((2, 4)) for k in range(9)]
    flat = np.stack(cells, -1).reshape(len(images), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


# chance is 10 %; the comments are what was measured
@pytest.mark.parametrize(
    ("features", "low", "high"),
    [
        (mean_colour, 0.05, 0.25),  # 16.8 %
        (histogram_of_colours, 0.05, 0.20),  # 10.7 %
        # dots cover less than half of their ground, bricks more: tones say a little, and so does what is in the middle
        (histogram_of_rgb, 0.05, 0.33),  # 28.0 %
        (pixels, 0.05, 0.30),  # 23.7 %
        (orientations, 0.75, 1.0),  # 86.2 %
    ],
)
def test_patterns_tell_the_class_and_colours_hardly_do(data, features, low: float, high: float) -> None:
    (train, train_labels), (val, val_labels) = data
    score = KNeighborsClassifier(20).fit(features(train), train_labels).score(features(val), val_labels)
    assert low < score < high


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_boxes_are_tight_around_what_the_object_changes(monkeypatch: pytest.MonkeyPatch, label: int) -> None:
    off = []
    for index in range(12):
        image, box = draw_image(rng_of(3, "images", 0, index), label, 64)
        with monkeypatch.context() as without:
            without.setattr(objects.Stamp, "paint", lambda stamp, canvas: None)
            empty, same = draw_image(rng_of(3, "images", 0, index), label, 64)
        assert same == box
        # each image has the same noise, so that what differs is the object's
        changed = np.abs(image.astype(int) - empty).max(2) > 12
        y, x = np.nonzero(changed)
        off.append(np.abs(np.subtract(box, (x.min(), y.min(), x.max() + 1, y.max() + 1))))
    assert np.median(off) == 0
    # where the object's tone comes near the background's at its edge, a few pixels do not show
    assert np.mean(off) < 0.7


def test_jpeg_leaves_the_patterns_alone(tmp_path) -> None:
    for label in range(len(CLASSES)):
        image, _ = draw_image(rng_of(0, "images", 0, label), label, SIZE)
        save_jpeg(tmp_path / "image.jpg", image)
        with Image.open(io.BytesIO((tmp_path / "image.jpg").read_bytes())) as opened:
            assert opened.mode == "RGB"
            decoded = np.asarray(opened)
        error = (decoded.astype(float) - image).ravel()
        assert np.sqrt((error**2).mean()) < 6  # of 255; the camera's noise alone is 5


def test_an_object_fills_most_of_its_image_whatever_its_class() -> None:
    for label in range(len(CLASSES)):
        for index in range(5):
            _, (x0, y0, x1, y1) = draw_image(rng_of(1, "images", 0, index), label, SIZE)
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
            assert max(x1 - x0, y1 - y0) > 0.5 * SIZE

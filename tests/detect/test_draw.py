"""Pictures of predictions beside ground truth: large enough to be read, with whole words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flsl.detect.coco_files import read_annotations
from flsl.detect.draw import _named, draw_predictions


@pytest.mark.parametrize("corner", [(0, 0), (300, 200), (470, 100), (100, 475), (479, 479), (-5, -5)])
def test_names_are_whole_wherever_the_box_is(corner: tuple[int, int]) -> None:
    def drawn(left: int, top: int) -> int:
        corners = torch.tensor([[left, top, left + 5, top + 5]])
        picture = _named(torch.zeros(3, 480, 480, dtype=torch.uint8), corners, ["blotches-crescent 0.27"], ["#ffffff"])
        return int(picture.sum())

    assert drawn(*corner) == drawn(50, 50) > 0


def test_small_images_are_drawn_larger_and_large_ones_as_they_are(tiny: Path) -> None:
    truth = read_annotations(tiny / "coco.json")
    record = next(iter(truth.images.values()))
    (path,) = draw_predictions(truth, [], tiny / "images", tiny / "drawn", 1)
    with Image.open(path) as image:
        assert image.size == (2 * 8 * record["width"], 8 * record["height"])
        pixels = np.asarray(image)
    # ground truth is drawn at the left, and nothing was found at the right
    left, right = np.split(pixels, 2, 1)
    assert (left != right).any()
    image = Image.open(tiny / "images" / record["file_name"]).resize((600, 525))
    image.save(tiny / "images" / record["file_name"])
    with Image.open(draw_predictions(truth, [], tiny / "images", tiny / "drawn", 1)[0]) as image:
        assert image.size == (1200, 525)

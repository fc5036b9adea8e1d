"""From a detector's boxes and masks to COCO results in the pixels of the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as reference_mask

from flsl.detect.augment import Target
from flsl.detect.dataset import Sample
from flsl.detect.predict import coco_results


def test_boxes_and_masks_are_those_of_the_files_pixels() -> None:
    # predicted on at half the file's size, which is 100 pixels high and 200 wide; the first box leaves it to the right
    image = torch.zeros(3, 50, 100, dtype=torch.uint8)
    sample = Sample(image, Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None), 7, (100, 200))
    likely = torch.full((2, 1, 28, 28), 0.3)
    likely[:, :, :, :14] = 0.7  # the left half is the object
    found = {
        "boxes": torch.tensor([[90.0, 10.0, 130.0, 30.0], [20.0, 5.0, 60.0, 45.0]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.75, 0.25]),
        "masks": likely,
    }
    first, second = coco_results(sample, found, [11, 22])
    assert (first["image_id"], first["category_id"], first["score"]) == (7, 22, 0.75)
    assert (second["category_id"], second["score"]) == (11, 0.25)
    assert first["bbox"] == [180, 20, 20, 40]
    assert second["bbox"] == [40, 10, 80, 80]
    mask = reference_mask.decode(second["segmentation"])
    assert mask.shape == (100, 200)
    wanted = np.zeros((100, 200))
    wanted[10:90, 40:80] = 1
    assert np.abs(mask - wanted).sum() < 0.1 * wanted.sum()
    assert np.abs(mask - wanted).sum() == pytest.approx(0, abs=2 * (40 + 80) * 2)  # but for its border

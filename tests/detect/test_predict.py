"""From a detector's boxes and masks to COCO results in the pixels of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference_mask
from tiny_coco import tiny_experiment
from torchvision.models.detection.roi_heads import paste_masks_in_image

from flsl.detect.augment import Target
from flsl.detect.coco_files import parse_annotations
from flsl.detect.dataset import Sample
from flsl.detect.predict import coco_results, predict
from flsl.detect.rcnn import Detector
from flsl.model.choice import EncoderChoice
from flsl.runtime.distributed import Process


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


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 90), st.integers(0, 40))
def test_masks_are_those_that_torchvision_pastes(seed: int, height: int, width: int, count: int) -> None:
    # boxes of any place and size, some of no area, some outside the image; some masks end at exactly 0.5
    rng = np.random.default_rng(seed)
    low = rng.uniform(-1.5, 1.2, (count, 2)) * (width, height)
    size = rng.choice([0, 0.1, 1, 3], (count, 2)) * rng.random((count, 2)) * (width, height)
    boxes = torch.from_numpy(np.concatenate([low, low + size], 1)).float()
    boxes = torch.where(torch.from_numpy(rng.random((count, 4)) < 0.3), boxes.round(), boxes)
    masks = torch.from_numpy(rng.random((count, 1, 28, 28))).float()
    masks = torch.where(torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.5), (masks * 4).round() / 4, masks)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    sample = Sample(image, Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None), 1, (height, width))
    found = {"boxes": boxes, "labels": torch.ones(count, dtype=torch.int64), "scores": torch.ones(count)}
    codes = [entry["segmentation"] for entry in coco_results(sample, {**found, "masks": masks}, [1])]
    within = boxes.clone()
    within[:, 0::2], within[:, 1::2] = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    for code, mask, box in zip(codes, masks, within, strict=True):
        pasted = paste_masks_in_image(mask[None], box[None], (height, width))[0, 0] >= 0.5
        wanted = reference_mask.encode(np.asfortranarray(pasted.numpy().astype(np.uint8)))
        assert code == {"size": [height, width], "counts": wanted["counts"].decode()}


def test_detections_do_not_depend_on_the_other_images_of_a_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(40, 48), (90, 40), (40, 90), (44, 42), (56, 64), (40, 120)]
    for index, (width, height) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{index}.png")
    images = [{"id": 9 - i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    data = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    truth = parse_annotations(data, tmp_path / "coco.json")
    experiment = tiny_experiment(tmp_path, "detection.model.score_threshold=0")
    torch.manual_seed(0)
    backbone = EncoderChoice(random=True).load(experiment)
    detector = Detector(backbone, 1, experiment.detection.model, masks=False).eval()

    def found(batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[float]]:
        recipe = experiment.detection.coco.model_copy(update={"test_batch_size": batch_size, "test_short_side": 40})
        process = Process(rank, 0, world_size, torch.device("cpu"))
        results = predict(detector, truth, tmp_path, recipe, 0, process)
        return [[entry["image_id"], entry["score"], *entry["bbox"]] for entry in results]

    alone = found(1)
    assert list(dict.fromkeys(number for number, *_ in alone)) == [9, 8, 7, 6, 5, 4]  # the images' order
    np.testing.assert_allclose(found(6), alone, atol=0.01)
    apart = found(6, 0, 2) + found(6, 1, 2)
    np.testing.assert_allclose(sorted(apart, key=lambda row: -row[0]), alone, atol=0.01)

"""The COCO layout, read with pycocotools and held against the objects as they were drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from flsl.config.data import ScenesSettings
from flsl.data.scenes.coco import CATEGORY_IDS, draw_image
from flsl.data.scenes.files import rng_of
from flsl.data.scenes.make import make_scenes
from flsl.data.scenes.objects import CLASSES

SETTINGS = ScenesSettings(
    train_images=10, val_images=10, coco_train_images=30, coco_val_images=7, uavdt_sequences=0, davis_sequences=0
)
SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    make_scenes(SETTINGS, out, processes=1)
    return out / "coco"


@pytest.fixture(scope="module", params=SPLITS)
def split(request: pytest.FixtureRequest, root: Path) -> tuple[int, COCO]:
    return SPLITS.index(request.param), COCO(root / "annotations" / f"instances_{request.param}2017.json")


def test_images_are_there_in_the_sizes_said(root: Path, split: tuple[int, COCO]) -> None:
    number, coco = split
    assert len(coco.imgs) == (SETTINGS.coco_train_images, SETTINGS.coco_val_images)[number]
    folder = root / f"{SPLITS[number]}2017"
    assert {path.name for path in folder.iterdir()} == {entry["file_name"] for entry in coco.imgs.values()}
    for entry in coco.imgs.values():
        assert entry["file_name"] == f"{entry['id']:012d}.jpg"
        with Image.open(folder / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"])
            assert 0.84 * SETTINGS.coco_size < max(image.size) < 1.16 * SETTINGS.coco_size
    sizes = {(entry["width"], entry["height"]) for entry in coco.imgs.values()}
    assert any(w > h for w, h in sizes)
    assert len(sizes) > 3


def test_categories_have_gaps_and_names(split: tuple[int, COCO]) -> None:
    _, coco = split
    assert [category["name"] for category in coco.cats.values()] == list(CLASSES)
    assert list(coco.cats) == list(CATEGORY_IDS)
    assert list(coco.cats) != list(range(min(coco.cats), min(coco.cats) + len(coco.cats)))


def test_masks_are_the_pixels_that_are_seen(split: tuple[int, COCO]) -> None:
    number, coco = split
    for index, entry in enumerate(coco.imgs.values()):
        rng = rng_of(SETTINGS.seed, "coco", number, index)
        image, placed = draw_image(rng, SETTINGS.coco_size, SETTINGS.classes, crowd=index % 6 == 2)
        # the painter's own rule, pixel by pixel: who comes last owns the pixel
        owner = np.full(image.shape[:2], -1)
        for who, one in enumerate(placed):
            owner[one.stamp.mask(*image.shape[:2])] = who
        expected = [owner == who for who, one in enumerate(placed) if not one.crowd]
        crowd = [who for who, one in enumerate(placed) if one.crowd]
        if crowd:
            expected.append(np.isin(owner, crowd))
        annotations = coco.imgToAnns[entry["id"]]
        assert len(annotations) == len(expected)
        for annotation, mask in zip(annotations, expected, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            assert annotation["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert annotation["area"] == mask.sum() > 0


def test_objects_are_many_and_hide_one_another(root: Path) -> None:
    coco = COCO(root / "annotations/instances_train2017.json")
    annotations = list(coco.anns.values())
    assert len({annotation["id"] for annotation in annotations}) == len(annotations)
    single = [annotation for annotation in annotations if not annotation["iscrowd"]]
    counts = np.bincount([len([a for a in coco.imgToAnns[i] if not a["iscrowd"]]) for i in coco.imgs])
    assert set(np.flatnonzero(counts)) <= set(range(6))
    assert len(np.flatnonzero(counts)) >= 4
    areas = np.array([annotation["area"] for annotation in single])
    assert areas.max() > 10 * areas.min()
    # split by something before them; with a hole; groups
    assert any(isinstance(one["segmentation"], list) and len(one["segmentation"]) > 1 for one in single)
    assert any(isinstance(one["segmentation"], dict) for one in single)
    crowds = [annotation for annotation in annotations if annotation["iscrowd"]]
    assert crowds
    assert all(isinstance(one["segmentation"], dict) for one in crowds)


def test_hidden_pixels_belong_to_no_one_else() -> None:
    for index in range(20):
        image, placed = draw_image(rng_of(5, "coco", 0, index), 128, 10, crowd=index % 2 == 0)
        total = sum(one.visible.astype(int) for one in placed)
        assert total.max() == 1
        assert all((one.visible <= one.whole).all() for one in placed)
        assert image.dtype == np.uint8


def test_what_is_painted_is_what_the_mask_says() -> None:
    """Paint the front object over a colour that nothing has: it shows where its mask is."""
    for index in range(6):
        _, placed = draw_image(rng_of(8, "coco", 0, index), 128, 10, crowd=False)
        front = placed[-1]
        height, width = front.whole.shape
        canvas = np.full((height, width, 3), -1000, np.float32)
        front.stamp.paint(canvas)
        np.testing.assert_array_equal((canvas > -499.5).all(2), front.visible)


def test_ids_differ_between_the_splits(root: Path) -> None:
    ids = []
    for name in SPLITS:
        made = json.loads((root / "annotations" / f"instances_{name}2017.json").read_text())
        ids.append({entry["id"] for entry in made["images"]})
        assert made["licenses"][0]["id"] == made["images"][0]["license"]
    assert not ids[0] & ids[1]

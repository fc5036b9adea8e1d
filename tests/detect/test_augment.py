"""Images, boxes and masks change together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flsl.config.detect import RecipeSettings
from flsl.detect.augment import Geometry, apply_image, apply_target, draw, fitted, nearest

RECIPE = RecipeSettings(
    short_sides=[60, 80], long_side=120, crop_short_sides=[50, 70], crop_range=[30, 45], crop=0.5, flip=0.5
)


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(20, 150), st.integers(20, 150))
def test_a_painted_box_is_found_where_its_box_and_mask_say(seed: int, width: int, height: int) -> None:
    rng = np.random.default_rng(seed)
    x0, y0 = int(rng.integers(0, width - 12)), int(rng.integers(0, height - 12))
    x1, y1 = int(rng.integers(x0 + 8, width + 1)), int(rng.integers(y0 + 8, height + 1))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    masks = (pixels[None, :, :, 0] > 0).astype(np.uint8)
    geometry = draw(rng, width, height, RECIPE)
    image = apply_image(Image.fromarray(pixels), geometry)
    boxes = np.array([[x0, y0, x1, y1]], np.float32)
    target = apply_target(boxes, np.array([4]), masks, geometry)
    assert image.shape[1:] == (geometry.size[1], geometry.size[0])
    bright = image[0] > 127
    if not len(target.boxes):
        assert bright.float().mean() < 0.02
        return
    assert target.labels.tolist() == [4]
    # nearest and antialiased sampling differ by a pixel at the border of the object
    assert (target.masks[0].bool() ^ bright).sum() <= 2 * (bright.shape[0] + bright.shape[1])
    rows, columns = torch.nonzero(target.masks[0].amax(1))[:, 0], torch.nonzero(target.masks[0].amax(0))[:, 0]
    found = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    zoom = max(geometry.size[0] / (geometry.crop[2] - geometry.crop[0]), 1)
    assert (target.boxes[0] - found).abs().max() <= 1 + zoom


@settings(max_examples=1000)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_nearest_places_are_torchs(size: int, out: int) -> None:
    # neighbouring places differ in their last eight bits
    wanted = F.interpolate(torch.arange(size).byte()[None, None, None], size=(1, out), mode="nearest")[0, 0, 0]
    places = nearest(size, out)
    assert places.shape == (out,)
    assert np.array_equal(places.astype(np.uint8), wanted.numpy())


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70), st.integers(0, 5))
def test_masks_are_those_of_cropping_resizing_and_flipping(seed: int, width: int, height: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    masks = (rng.random((count, height, width)) < rng.choice([0, 0.01, 0.5], (count, 1, 1))).astype(np.uint8)
    # as they are decoded: one column after the other
    masks = masks.transpose(0, 2, 1).copy().transpose(0, 2, 1) if rng.random() < 0.5 else masks
    boxes = np.array([[0, 0, width, height]] * count, np.float32).reshape(-1, 4)
    left, top = int(rng.integers(width)), int(rng.integers(height))
    crop = (left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1)
    crop = (0, 0, width, height) if rng.random() < 0.3 else crop
    size = (int(rng.integers(1, 150)), int(rng.integers(1, 150)))
    flip = bool(rng.random() < 0.5)
    target = apply_target(boxes, np.arange(count), masks, Geometry(crop, size, flip))
    assert target.masks is not None
    assert target.masks.is_contiguous()
    assert target.masks.shape == (len(target.labels), size[1], size[0])
    kept = target.labels.tolist()
    for label, mask in enumerate(masks):
        part = torch.from_numpy(mask[crop[1] : crop[3], crop[0] : crop[2]].copy())
        wanted = F.interpolate(part[None, None], size=size[::-1], mode="nearest")[0, 0]
        wanted = wanted.flip(1) if flip else wanted
        if label in kept:
            assert torch.equal(target.masks[kept.index(label)], wanted)
        elif crop == (0, 0, width, height):
            assert not wanted.any()  # the boxes are the whole image: only an empty mask drops one


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(20, 400), st.integers(20, 400))
def test_geometry_keeps_the_policy(seed: int, width: int, height: int) -> None:
    geometry = draw(np.random.default_rng(seed), width, height, RECIPE)
    left, top, right, bottom = geometry.crop
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert max(geometry.size) <= 120
    assert min(geometry.size) in (60, 80) or max(geometry.size) == 120
    if geometry.crop == (0, 0, width, height):
        assert geometry.size in [fitted(width, height, short, 120) for short in (60, 80)]


def test_sizes_flips_and_what_is_cut_away() -> None:
    assert fitted(640, 480, 800, 1333) == (1067, 800)
    assert fitted(1000, 300, 800, 1333) == (1333, 400)
    boxes = np.array([[0, 0, 10, 10], [30, 30, 40, 40]], np.float32)
    target = apply_target(boxes, np.array([1, 2]), None, Geometry((20, 20, 50, 50), (60, 60), True))
    assert target.labels.tolist() == [2]
    torch.testing.assert_close(target.boxes, torch.tensor([[20.0, 20, 40, 40]]))
    assert target.masks is None


def test_nothing_left_gives_empty_masks_of_the_right_size() -> None:
    boxes, masks = np.array([[0, 0, 5, 5]], np.float32), np.ones((1, 50, 50), np.uint8)
    target = apply_target(boxes, np.array([1]), masks, Geometry((20, 20, 50, 50), (90, 60), False))
    assert target.masks is not None
    assert target.masks.shape == (0, 60, 90)
    assert target.boxes.shape == (0, 4)


def test_a_crop_is_taken_in_about_its_share_of_draws() -> None:
    drawn = [draw(np.random.default_rng(seed), 200, 150, RECIPE) for seed in range(400)]
    assert sum(g.flip for g in drawn) / 400 == pytest.approx(0.5, abs=0.1)
    assert sum(g.crop != (0, 0, 200, 150) for g in drawn) / 400 == pytest.approx(0.5, abs=0.1)

"""Crops, boxes and batches of the probes against torchvision and plain loops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode

from flsl.data.crops import CROP_DRAWS, random_resized_boxes
from flsl.data.images import ImageSet
from flsl.probe.loading import CentreCrop, RandomCrop, batches, in_order, pixels, shuffled
from flsl.runtime.errors import UserError

CPU = torch.device("cpu")


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=60)
@given(width=st.integers(5, 120), height=st.integers(5, 120), resize=st.integers(8, 64), less=st.integers(0, 7))
def test_centre_crop_equals_torchvisions(width: int, height: int, resize: int, less: int) -> None:
    image = noise_image(width, height)
    expected = tv.center_crop(
        tv.resize(image, [resize], interpolation=InterpolationMode.BICUBIC, antialias=True), [resize - less]
    )
    assert torch.equal(CentreCrop(resize, resize - less)(image, (0, 0)), tv.pil_to_tensor(expected))


@pytest.mark.parametrize(("width", "height"), [(1, 2000), (2001, 3), (5, 700), (2000, 1)])
def test_an_image_of_extreme_shape_is_not_resized_whole(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, resize = noise_image(width, height), Image.Image.resize
    whole = tv.resize(image, [30], interpolation=InterpolationMode.BICUBIC, antialias=True)
    sizes: list[tuple[int, int]] = []

    def noting(self: Image.Image, size: tuple[int, int], *arguments: Image.Resampling) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", noting)
    got = CentreCrop(30, 24)(image, (0, 0))
    assert max(sizes[0]) <= 36 * 30
    expected = tv.pil_to_tensor(tv.center_crop(whole, [24]))
    assert (got.int() - expected.int()).abs().max() <= 2  # by rounding, where sides are no multiples of each other


@settings(max_examples=80)
@given(data=st.data(), width=st.integers(20, 90), height=st.integers(20, 90))
def test_boxes_lie_where_their_pixels_go(data: st.DataObject, width: int, height: int) -> None:
    # a white rectangle on black: after the crop its bright part is where the box is said to be
    x0 = data.draw(st.integers(0, width - 4))
    y0 = data.draw(st.integers(0, height - 4))
    x1 = data.draw(st.integers(x0 + 4, width))
    y1 = data.draw(st.integers(y0 + 4, height))
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[y0:y1, x0:x1] = 255
    crop = CentreCrop(64, 48)
    bright = crop(Image.fromarray(canvas), (0, 0))[0] > 127
    (left, top, right, bottom) = crop.boxes(np.array([[x0, y0, x1, y1]], float), width, height)[0]
    assert 0 <= left <= right <= 48
    assert 0 <= top <= bottom <= 48
    thin = right - left < 2 or bottom - top < 2
    if not bright.any():
        assert thin
        return
    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    # where a part of a pixel's width is left of it, it is not bright up to its ends
    inwards = np.array([1, 1, -1, -1]) * (edges - [left, top, right, bottom])
    assert inwards.min() >= -1.01
    assert thin or inwards.max() <= 1.01


def test_random_crop_equals_torchvisions_at_its_box_and_is_a_function_of_seed_epoch_and_index() -> None:
    picture = noise_image(15, 11).resize((60, 41), Image.Resampling.BICUBIC)
    image = pixels(picture)
    make = RandomCrop(seed=5, crop=24, scale=(0.2, 0.9), flip=True)
    flips = 0
    for key in [(epoch, index) for epoch in range(4) for index in range(25)]:
        numbers = np.random.default_rng((5, *key, 1)).random(CROP_DRAWS + 1)
        box = random_resized_boxes(numbers[None, :CROP_DRAWS], 41, 60, (0.2, 0.9))[0]
        top, left, height, width = box.tolist()
        assert 0.15 <= height * width / (60 * 41) <= 0.95
        where = (top, left, height, width, [24, 24], InterpolationMode.BICUBIC)
        expected = tv.resized_crop(image, *where, antialias=True)
        got = make(image, key)
        assert torch.equal(got, make(image, key))
        # Pillow rounds and clips at other places between the two passes of the filter
        pillows = tv.pil_to_tensor(tv.resized_crop(picture, *where))
        assert (expected.int() - pillows.int()).abs().float().mean() < 0.3
        flipped = torch.equal(got, expected.flip(2))
        assert flipped or torch.equal(got, expected)
        flips += flipped
    assert 30 < flips < 70
    assert not torch.equal(make(image, (0, 0)), make(image, (0, 1)))
    assert not torch.equal(make(image, (0, 0)), make(image, (1, 0)))
    assert not torch.equal(make(image, (0, 0)), RandomCrop(6, 24, (0.2, 0.9), True)(image, (0, 0)))


def test_no_flip_when_it_is_off() -> None:
    image = pixels(noise_image(30, 30))
    whole = RandomCrop(0, 30, (1.0, 1.0), flip=False)
    # the whole area at ratio 1 does not always fit; the last resort is the whole image
    crops = [whole(image, (0, index)) for index in range(30)]
    assert not any(torch.equal(crop, image.flip(2)) for crop in crops)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_order_for_any_number_of_workers(image_folder: Path, workers: int) -> None:
    images = ImageSet.scan(image_folder, "train")
    crop = CentreCrop(20, 16)
    got = list(batches(images.load, crop, in_order(range(len(images)), 10), workers, CPU))
    assert [len(indices) for indices, _ in got] == [10] * 7 + [2]
    assert torch.cat([indices for indices, _ in got]).tolist() == list(range(72))
    expected = [crop(Image.open(images.path(index)).convert("RGB"), (0, index)) for index in range(72)]
    assert torch.equal(torch.cat([crops for _, crops in got]), torch.stack(expected))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(image_folder: Path, tmp_path: Path, workers: int) -> None:
    for name in ("good", "bad"):
        (tmp_path / "train" / name).mkdir(parents=True)
    noise_image(20, 20).save(tmp_path / "train" / "good" / "0.png")
    (tmp_path / "train" / "bad" / "1.png").write_bytes(b"no image")
    images = ImageSet.scan(tmp_path, "train")
    with pytest.raises(UserError, match=r"train/bad/1\.png: not a readable image") as caught:
        list(batches(images.load, CentreCrop(20, 16), in_order(range(2), 2), workers, CPU))
    assert "Traceback" not in str(caught.value)


def test_shuffled_passes_over_all_images_in_an_order_of_each_epochs_own() -> None:
    whole = list(shuffled(23, 5, seed=3, epochs=range(4)))
    assert [len(batch) for batch in whole] == [5, 5, 5, 5, 3] * 4
    for epoch in range(4):
        keys = [key for batch in whole[5 * epoch : 5 * epoch + 5] for key in batch]
        assert Counter(keys) == Counter((epoch, index) for index in range(23))
        assert [index for _, index in keys] != list(range(23))
    assert list(shuffled(23, 5, seed=3, epochs=range(2, 4))) == whole[10:]
    assert list(shuffled(23, 5, seed=4, epochs=range(1))) != whole[:5]

"""From image files to batches of 8-bit crops, in a fixed order whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flsl.data.boxes import Boxes
from flsl.data.crops import CROP_DRAWS, random_resized_crop
from flsl.data.order import Key
from flsl.runtime.signals import obey_parent

Picture = TypeVar("Picture")

_LONG = 32  # times the short side; photographs are shorter

# set the probes' random numbers apart from each other and from pretraining's of the same seed
_CROPS, _ORDER = 1, 2


@dataclass(frozen=True)
class CentreCrop:
    """Resize the short side (bicubic, antialiased) and cut the central square out, as torchvision does.

    Attributes:
        resize: short side after resizing, in pixels.
        crop: side of the square, in pixels; at most ``resize``.
    """

    resize: int
    crop: int

    def __call__(self, image: Image.Image, key: Key) -> Tensor:
        """Return the crop (3, crop, crop), uint8, of an RGB image."""
        image = _without_ends(image)
        width, height, left, top = self._geometry(image.width, image.height)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return pixels(image.crop((left, top, left + self.crop, top + self.crop)))

    def boxes(self, boxes: Boxes, width: int, height: int) -> Boxes:
        """Return where boxes of an image lie in its crop.

        Args:
            boxes: (n, 4) x0, y0, x1, y1 in pixels of the image.
            width: of the image, in pixels.
            height: of the image, in pixels.

        Returns:
            (n, 4) x0, y0, x1, y1 in pixels of the crop, clipped to it; of no area for a box outside.
        """
        new_width, new_height, left, top = self._geometry(width, height)
        scale = np.array([new_width / width, new_height / height] * 2)
        moved: Boxes = (boxes * scale - np.array([left, top] * 2)).clip(0, self.crop)
        return moved

    def _geometry(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the size after resizing, and the crop's left and top in it."""
        short, long = min(width, height), max(width, height)
        long = self.resize * long // short
        width, height = (self.resize, long) if width <= height else (long, self.resize)
        # torchvision rounds halves to even here
        return width, height, round((width - self.crop) / 2), round((height - self.crop) / 2)


@dataclass(frozen=True)
class RandomCrop:
    """RandomResizedCrop (bicubic, antialiased) and flip, the same for an image and epoch on every run.

    It resizes 8-bit tensors, as pretraining does: in 0.6 of the time of Pillow, decoding included.

    Attributes:
        seed: with epoch and index, decides the crop.
        crop: side of the crop, in pixels.
        scale: range of its area, as a share of the image's.
        flip: whether half of the crops are mirrored.
    """

    seed: int
    crop: int
    scale: tuple[float, float]
    flip: bool

    def __call__(self, image: Tensor, key: Key) -> Tensor:
        """Return the crop (3, crop, crop), uint8, of an RGB image (3, height, width), uint8."""
        numbers = np.random.default_rng((self.seed, *key, _CROPS)).random(CROP_DRAWS + 1)
        crop = random_resized_crop(image, numbers[:CROP_DRAWS], self.scale, self.crop)
        return crop.flip(2) if self.flip and numbers[-1] < 0.5 else crop


def _without_ends(image: Image.Image) -> Image.Image:
    """Cut ends off an image of extreme shape that its central crop does not show.

    Resized whole, a line of one pixel by ten thousand would take gigabytes. What is cut off at either end is an even
    number of short sides, so that the crop keeps its place.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    end = max(0, long // short - _LONG) // 4 * 2 * short
    if not end:
        return image
    return image.crop((end, 0, width - end, height) if width > height else (0, end, width, height - end))


def pixels(image: Image.Image) -> Tensor:
    """Return an RGB image's pixels (3, height, width), uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class _Images(Dataset[Any], Generic[Picture]):
    """Images by key; a batch is fetched at once."""

    def __init__(self, read: Callable[[int], Picture], make: Callable[[Picture, Key], Any]) -> None:
        self._read, self._make = read, make

    def __getitems__(self, keys: list[Key]) -> Any:
        samples = [self._make(self._read(index), (epoch, index)) for epoch, index in keys]
        indices = torch.tensor([index for _, index in keys])
        return indices, torch.utils.data.default_collate(samples)


def batches(
    read: Callable[[int], Picture],
    make: Callable[[Picture, Key], Any],
    keys: Iterable[list[Key]],
    workers: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches in the order of ``keys``.

    Args:
        read: gives an RGB image by its index: an image set's ``load`` or, for what takes tensors, ``pixels``.
        make: makes a tensor, or a tuple of tensors, of an image and its key.
        keys: each batch's epochs and indices.
        workers: loading processes; 0 loads in this one.
        device: where batches will go; for CUDA they are put into page-locked memory.

    Yields:
        indices (batch,), and what ``make`` made, stacked.

    Raises:
        UserError: naming an image that cannot be read.
    """
    loader: DataLoader[Any] = DataLoader(
        _Images(read, make),
        batch_sampler=keys,
        num_workers=workers,
        worker_init_fn=obey_parent,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
    )
    yield from loader


def _as_it_is(batch: Any) -> Any:
    return batch


def in_order(indices: Iterable[int], batch_size: int) -> list[list[Key]]:
    """Return the keys of one pass over ``indices`` in their order, as epoch 0."""
    keys = [(0, index) for index in indices]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


def shuffled(count: int, batch_size: int, seed: int, epochs: range) -> Iterator[list[Key]]:
    """Yield the keys of each epoch's batches; an epoch's order is a function of (seed, epoch)."""
    for epoch in epochs:
        order = np.random.default_rng((seed, epoch, 0, _ORDER)).permutation(count).tolist()
        for start in range(0, count, batch_size):
            yield [(epoch, index) for index in order[start : start + batch_size]]

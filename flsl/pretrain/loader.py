"""The order of images and the workers that decode them; both are functions of (seed, epoch, index) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from flsl.data.views import FLSLViews
from flsl.runtime.distributed import Process
from flsl.runtime.errors import UserError

Key = tuple[int, int]
Loaded = tuple[Tensor, NDArray[np.float64]]


class Images(Protocol):
    """What training reads: as many RGB images as it has length."""

    def __len__(self) -> int: ...

    def pixels(self, index: int) -> Tensor:
        """Return image ``index`` (3, height, width), uint8."""


class TeacherCrops(Dataset[Loaded]):
    """Decodes images and makes the teacher's crop; keys are (epoch, index)."""

    def __init__(self, images: Images, views: FLSLViews, seed: int) -> None:
        self._images, self._views, self._seed = images, views, seed

    def __getitem__(self, key: Key) -> Loaded:
        epoch, index = key
        numbers = self._views.draw(self._seed, epoch, index)
        return self._views.crop(self._images.pixels(index), numbers), numbers


class Order(Sampler[list[Key]]):
    """The micro-batches of this rank from a step on, to the end of training, across epochs.

    Every epoch is a permutation drawn from (seed, epoch); the images that do not fill a last batch are left out. A
    global batch is cut into micro-batches and those into ranks' shares, in order.

    Args:
        images: their number.
        batch_size: images a step, over all ranks and micro-batches.
        accumulate: micro-batches a step.
        epochs: in all.
        seed: of the permutations.
        process: this rank.
        start: the first step.

    Raises:
        UserError: when the batch is larger than the data set or cannot be shared equally.
    """

    def __init__(
        self, images: int, batch_size: int, accumulate: int, epochs: int, seed: int, process: Process, start: int = 0
    ) -> None:
        shares = accumulate * process.world_size
        if batch_size % shares:
            raise UserError(
                f"pretrain.batch_size: {batch_size} images cannot be shared by {process.world_size} ranks x "
                f"{accumulate} micro-batches; take a multiple of {shares}"
            )
        if batch_size > images:
            raise UserError(
                f"pretrain.batch_size: {batch_size} is more than the {images} training images; take at most {images}"
            )
        self.steps_per_epoch = images // batch_size
        self._images, self._batch_size, self._accumulate = images, batch_size, accumulate
        self._epochs, self._seed, self._process, self._start = epochs, seed, process, start

    def __iter__(self) -> Iterator[list[Key]]:
        share = self._batch_size // self._accumulate // self._process.world_size
        for epoch in range(self._start // self.steps_per_epoch, self._epochs):
            order = np.random.default_rng((self._seed, epoch)).permutation(self._images)
            first = max(0, self._start - epoch * self.steps_per_epoch)
            for step in range(first, self.steps_per_epoch):
                batch = order[step * self._batch_size : (step + 1) * self._batch_size]
                shares = batch.reshape(self._accumulate, self._process.world_size, share)
                for micro in shares[:, self._process.rank]:
                    yield [(epoch, int(index)) for index in micro]

    def __len__(self) -> int:
        return (self._epochs * self.steps_per_epoch - self._start) * self._accumulate


def build_loader(images: Images, views: FLSLViews, seed: int, order: Order, workers: int) -> DataLoader[Loaded]:
    """Return a loader of (crops (batch, 3, T, T) uint8, numbers (batch, draws)), once through the whole training."""
    return DataLoader(
        TeacherCrops(images, views, seed),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _collate(samples: list[Loaded]) -> Loaded:
    crops = torch.stack([crop for crop, _ in samples])
    return crops, np.stack([numbers for _, numbers in samples])

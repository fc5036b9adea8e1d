"""The workers that decode images and cut the teacher's crops; a crop is a function of (seed, epoch, index) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flsl.data.order import Key, Order
from flsl.data.views import Batch, FLSLViews
from flsl.runtime.signals import obey_parent

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


def build_loader(
    images: Images, views: FLSLViews, seed: int, order: Order, workers: int, device: torch.device
) -> DataLoader[Loaded]:
    """Return a loader of (crops (batch, 3, T, T) uint8, numbers (batch, draws)), once through the whole training.

    Crops are in page-locked memory where ``device`` is CUDA.
    """
    return DataLoader(
        TeacherCrops(images, views, seed),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=obey_parent,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
    )


def _collate(samples: list[Loaded]) -> Loaded:
    crops = torch.stack([crop for crop, _ in samples])
    return crops, np.stack([numbers for _, numbers in samples])


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Give batches that are on a device; a GPU gets the next one while it computes on this one.

    Args:
        batches: from the loader, on the CPU.
        device: where they go.
    """
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def sent(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            return batch.pin_memory().to(device), copying.record_event()

    def received(batch: Batch, copied: torch.cuda.Event) -> Batch:
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        # else its memory could be taken for the next copy while it is still read

        def used(tensor: Tensor) -> Tensor:
            tensor.record_stream(computing)
            return tensor

        return batch.each(used)

    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        previous, waiting = waiting, sent(batch)
        if previous is not None:
            yield received(*previous)
    if waiting is not None:
        yield received(*waiting)

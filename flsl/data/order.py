"""In which order a training sees its images: a function of (seed, epoch) alone, whatever the ranks and restarts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from flsl.data.batch import check_batch
from flsl.runtime.distributed import Process

Key = tuple[int, int]
"""Epoch and index of an image: what happens to it may depend on nothing else."""


class Order(Sampler[list[Key]]):
    """The micro-batches of this rank to the end of training, across epochs, from the first step or a later one on.

    Every epoch is a permutation drawn from (seed, epoch); the images that do not fill a last batch are left out. A
    global batch is cut into micro-batches and those into ranks' shares, in order.

    Attributes:
        steps_per_epoch, steps: of an epoch, and in all.

    Args:
        images: their number.
        batch_size: images per step, over all ranks and micro-batches.
        accumulate: micro-batches per step.
        epochs: in all.
        seed: of the permutations.
        process: this rank.
        setting: the batch size's dotted name, for messages.

    Raises:
        UserError: as :func:`flsl.data.batch.check_batch`.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        accumulate: int,
        epochs: int,
        seed: int,
        process: Process,
        setting: str = "batch_size",
    ) -> None:
        check_batch(batch_size, accumulate, process.world_size, images, setting)
        self.steps_per_epoch = images // batch_size
        self.steps = epochs * self.steps_per_epoch
        self._images, self._batch_size, self._accumulate = images, batch_size, accumulate
        self._epochs, self._seed, self._process, self._start = epochs, seed, process, 0

    def go_on(self, start: int) -> None:
        """Begin at another step."""
        self._start = start

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
        return (self.steps - self._start) * self._accumulate

"""Notices what is not finite, losses and weights, on the device and without fetching the loss of every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flsl.runtime.distributed import sum_over_ranks
from flsl.runtime.errors import UserError
from flsl.runtime.training import all_finite


class LossGuard:
    """Sums the losses between two lines of the history and keeps the first step at which one was not finite.

    Args:
        names: of the loss and its parts, in the order in which they are given.
        device: where the losses are.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self._names = names
        self.sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self._first_bad = torch.full((len(names) + 1,), -1.0, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, step: int, values: list[Tensor]) -> None:
        """Count the losses of a step (scalars on the device)."""
        row = torch.stack([value.detach().double() for value in values])
        self.sums[0] += 1
        self.sums[1:] += row
        record = torch.cat([row.new_full((1,), float(step)), row])
        first = (self._first_bad[0] < 0) & ~row.isfinite().all()
        self._first_bad = torch.where(first, record, self._first_bad)

    def means(self) -> dict[str, float]:
        """Return the mean losses since the last call, over all ranks, and start anew (this waits for the device)."""
        sums = sum_over_ranks(self.sums).tolist()
        self.sums.zero_()
        return {name: total / max(1.0, sums[0]) for name, total in zip(self._names, sums[1:], strict=True)}

    def check(self, checkpoint: Path | None) -> None:
        """Stop the training if a loss was not finite (this waits for the device).

        Raises:
            UserError: naming the step, the parts and the last good checkpoint.
        """
        step, *values = self._first_bad.tolist()
        if step < 0:
            return
        parts = ", ".join(f"{name} {value:.4g}" for name, value in zip(self._names, values, strict=True))
        raise _stopped(f"the loss of step {int(step)} is not finite ({parts})", checkpoint)


def check_weights(weights: Sequence[Tensor], done: int, checkpoint: Path | None) -> None:
    """Stop the training before weights that are not finite are kept (this waits for the device).

    A gradient may be infinite where the loss is not: the next loss would tell, after such weights had been saved.

    Raises:
        UserError: naming the step and the last good checkpoint.
    """
    if not all_finite(weights):
        raise _stopped(f"the weights after step {done} are not finite", checkpoint)


def _stopped(why: str, checkpoint: Path | None) -> UserError:
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint is not None else "there was no checkpoint yet"
    return UserError(
        f"pretraining stopped: {why}; {kept}; "
        "lower pretrain.learning_rate, raise pretrain.warmup, or set pretrain.precision=float32"
    )

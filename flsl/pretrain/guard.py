"""Notices the first loss that is not finite, on the device, without fetching the loss of every step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flsl.runtime.errors import UserError


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
        """Return the mean losses since the last call, and start anew (this waits for the device)."""
        sums = self.sums.tolist()
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
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint is not None else "there was no checkpoint yet"
        raise UserError(
            f"pretraining stopped: the loss of step {int(step)} is not finite ({parts}); {kept}; "
            "lower pretrain.learning_rate, raise pretrain.warmup, or set pretrain.precision=float32"
        )

"""When a checkpoint is due."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from flsl.config.compute import ComputeSettings

_SHARE = 0.01


class Pace:
    """Decides when to write checkpoints.

    They are due as the settings say, and where an epoch ends: but not so often that training would stand still for more
    than a hundredth of its time.

    Args:
        settings: minutes and steps between two checkpoints.
        clock: returns seconds.
    """

    def __init__(self, settings: ComputeSettings, clock: Callable[[], float] = time.perf_counter) -> None:
        self._settings, self._clock = settings, clock
        self._last, self._cost = clock(), 0.0

    def due(self, step: int, epoch_ends: bool) -> bool:
        """Return whether to write a checkpoint after ``step`` steps."""
        passed = self._clock() - self._last
        if self._settings.checkpoint_steps and step % self._settings.checkpoint_steps == 0:
            return True
        return passed >= 60 * self._settings.checkpoint_minutes or (epoch_ends and _SHARE * passed >= self._cost)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Note how long the writing of a checkpoint takes."""
        started = self._clock()
        yield
        self._last = self._clock()
        self._cost = self._last - started

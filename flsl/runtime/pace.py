"""When a checkpoint is due."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from flsl.config.compute import ComputeSettings
from flsl.runtime.distributed import Agreement, first_says
from flsl.runtime.place import is_main_process

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
        self._agreement = Agreement()

    def due(self, step: int, epoch_ends: bool) -> bool:
        """Return whether to write a checkpoint after ``step`` steps.

        Ranks have clocks of their own: all do as the first one's says. Every rank asks at every step.
        """
        if self._settings.checkpoint_steps and step % self._settings.checkpoint_steps == 0:
            return True
        passed = self._clock() - self._last
        long_ago = passed >= 60 * self._settings.checkpoint_minutes
        if epoch_ends:
            return bool(first_says(long_ago or _SHARE * passed >= self._cost))
        return bool(self._agreement.largest(long_ago and is_main_process()))

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Note how long the writing of a checkpoint takes."""
        # what a rank asked for at the last step is done herewith
        self._agreement.settle()
        started = self._clock()
        yield
        self._last = self._clock()
        self._cost = self._last - started

"""Stopping in good order: on SIGTERM, SIGUSR2 or Ctrl-C a long stage saves at the next step and ends."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from flsl.runtime.distributed import Agreement
from flsl.runtime.errors import Stopped
from flsl.runtime.signals import STOPPING, heeded


class StopRequest:
    """Collects the signals while the body of ``with`` runs, and agrees on them over all ranks.

    A second Ctrl-C ends the process at once. Other signals may come again while the stage saves: a cluster sends
    several for one preemption or time limit. Those that the process was started to ignore stay ignored.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._agreement = Agreement()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in heeded(STOPPING):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._agreement.settle()
        stopped = kind is not None and issubclass(kind, Stopped)
        for number, handler in self._previous.items():
            # after a stop the process ends, and clusters' reminders must not end it before; Python puts handlers of
            # its own back to the default on its way out, but not those that ignore
            ignored = stopped and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if ignored else handler)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signum == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = self.signum or signum

    def agreed(self) -> int:
        """Return the signal that all ranks act on at this step, or 0; to be called by every rank at every step.

        The ranks' answers of one step are gathered while the next one runs, so that nobody waits for them.
        """
        return self._agreement.largest(self.signum)

"""Stopping in good order: on SIGTERM, SIGUSR2 or Ctrl-C a long stage saves at the next step and ends."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from flsl.runtime.distributed import world_size
from flsl.runtime.errors import Stopped

__all__ = ["StopRequest", "Stopped"]

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class StopRequest:
    """Collects the signals while the body of ``with`` runs, and agrees on them over all ranks.

    A second Ctrl-C ends the process at once. Other signals may come again while the stage saves: a cluster sends
    several for one preemption or time limit.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._pending: tuple[torch.Tensor, dist.Work] | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending is not None and kind is None:
            self._pending[1].wait()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signum == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = self.signum or signum

    def agreed(self) -> int:
        """Return the signal that all ranks act on at this step, or 0; to be called by every rank at every step.

        The ranks' answers of one step are gathered while the next one runs, so that nobody waits for them.
        """
        if world_size() == 1:
            return self.signum
        answer = 0
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            answer = int(flag)
        flag = torch.tensor(self.signum, dtype=torch.int32)
        self._pending = (flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True))
        return answer

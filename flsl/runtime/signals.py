"""Who heeds the signals that ask a stage to stop: its main process alone, which ends the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""Ctrl-C, and what clusters send before a time limit or a preemption."""
_SECONDS = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a stage has nothing of its own to do about it: files half-written are removed on the way out."""


def heeded(signals: Sequence[int]) -> list[int]:
    """Return those signals that this process was not started to ignore, as ``nohup`` and a script's ``&`` have it."""
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


def raise_at_first(signals: Sequence[int], error: Callable[[int], BaseException]) -> None:
    """Let the first of ``signals`` raise ``error(signal)`` from now on, and let nobody heed those that follow.

    A second one must not end the tidying up, nor the commands that are run for it. Ignored ones stay so.
    """
    armed = heeded(signals)

    def raise_it(signum: int, frame: FrameType | None) -> None:
        for number in armed:
            signal.signal(number, signal.SIG_IGN)
        raise error(signum)

    for number in armed:
        signal.signal(number, raise_it)


@contextlib.contextmanager
def raising_at_first(signals: Sequence[int], error: Callable[[int], BaseException]) -> Iterator[None]:
    """Do as :func:`raise_at_first` while the body of ``with`` runs."""
    before = {number: signal.getsignal(number) for number in signals}
    try:
        raise_at_first(signals, error)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def loader_died(error: RuntimeError) -> bool:
    """Tell whether torch raised this, wherever the process happened to be, as a loading process was killed."""
    return str(error).startswith("DataLoader worker (pid")


def end_with(parent: int) -> None:
    """Let this process be killed as soon as its parent, the process ``parent``, is gone: nobody would know of it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def obey_parent(worker: int = 0) -> None:
    """Let this process end when its parent says so or is gone, and at no other's signal; for a process's start.

    Ctrl-C, torchrun and some clusters signal all processes of a stage: one that loads data would be gone before the
    main one can save. It would also outlive a main process that is killed, waiting for somebody to take its data.
    """
    process = multiprocessing.parent_process()
    parent = os.getppid() if process is None else process.pid  # it may be gone already
    # all later threads inherit it, so that the one below receives them
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    def watch() -> None:
        while True:
            told = signal.sigtimedwait(STOPPING, _SECONDS)
            if os.getppid() != parent or (told is not None and told.si_pid == parent):
                os._exit(0)

    threading.Thread(target=watch, daemon=True).start()

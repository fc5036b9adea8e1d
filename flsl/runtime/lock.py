"""A lock between processes: a file that one of them holds, and lets go of when it ends, however it does."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from flsl.runtime.outputs import writing
from flsl.runtime.progress import say

_SECONDS = 0.05


@contextlib.contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[bool]:
    """Hold a lock while the body of ``with`` runs; yield whether it is held.

    On a file system without locks it counts as held, by all that ask.

    Args:
        path: its file; made where it is missing, and left there.
        patience: seconds to wait for another process; ``math.inf`` waits as long as it takes.

    Raises:
        OSError: when the file cannot be opened for writing.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        end = time.monotonic() + patience
        while not (held := _take(handle, patience == math.inf)) and time.monotonic() < end:
            time.sleep(_SECONDS)
        yield held
    finally:
        os.close(handle)


@contextlib.contextmanager
def in_turn(path: Path, message: str) -> Iterator[None]:
    """Hold a lock while the body of ``with`` runs; where another process holds it, say ``message`` and wait for it.

    Args:
        path: its file; made with its folder where it is missing, and left there.
        message: one line for the terminal.

    Raises:
        UserError: when the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(locked(path))
        if not held:
            say(message)
            stack.enter_context(locked(path, math.inf))
        yield


def _take(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True

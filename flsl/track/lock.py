"""One process at a time sends what belongs to a project, so that nothing is sent twice."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from flsl.track.store import TrackingError


class BusyError(TrackingError):
    """Another process is at it."""


@contextlib.contextmanager
def sending(project_folder: Path, patience: float) -> Iterator[None]:
    """Hold the project's lock; a process that dies lets go of it.

    Args:
        project_folder: where the file ``.tracking.lock`` lies.
        patience: seconds to wait for another process.

    Raises:
        BusyError: when another process still holds it then.
    """
    path = project_folder / ".tracking.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        # results that may only be read can still be sent; two processes at once are mended by the next sync
        yield
        return
    try:
        end = time.monotonic() + patience
        while not _locked(handle):
            if time.monotonic() >= end:
                raise BusyError(f"{path}: another process is sending this project's results; try again later")
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # a file system without locks
        return True
    return True

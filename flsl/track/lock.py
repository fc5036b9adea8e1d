"""One process at a time sends what belongs to a project, so that nothing is sent twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flsl.runtime.lock import locked
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
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(locked(path, patience))
        except OSError:
            # results that may only be read can still be sent; two processes at once are mended by the next sync
            held = True
        if not held:
            raise BusyError(f"{path}: another process is sending this project's results; try again later")
        yield

"""Reading from file systems that fail in passing, as a network's do: once in a million times is often in a training."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

Read = TypeVar("Read")

_PASSING = frozenset({errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOTCONN})
_WAITS = (0.2, 1.0, 5.0)  # seconds


def patiently(read: Callable[[], Read]) -> Read:
    """Return what ``read`` returns, which is called again after a while where it failed in a way that may pass.

    Raises:
        OSError: what it raised last.
    """
    for seconds in _WAITS:
        try:
            return read()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(seconds)
    return read()

"""Standard output that refuses what is written to it: a pager that was left, a full disk, signs that it lacks."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable


def write_out(command: Callable[[], int]) -> int:
    """Return the exit code of ``command``; or a shell's, where nobody reads on, and 2 where the disk is full."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a sign that the terminal's encoding lacks is spelled, as it is on standard error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return command()
        finally:
            # at Python's own end it would be too late to say in a line why it cannot be written
            print(end="", flush=True)
    except BrokenPipeError:
        if not _reader_gone():
            raise
        return _mute(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"flsl: error: {where}{error.strerror}; free some and start again", file=sys.stderr)
        return _mute(2)


def _reader_gone() -> bool:
    """Tell whether it is standard output that nobody reads any more, as in ``flsl … | head``."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _mute(code: int) -> int:
    """Have the rest of standard output go nowhere, so that Python does not try it again at its end; return ``code``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code

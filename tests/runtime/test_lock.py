"""A lock between processes: one holds it, others wait as long as they will, and none is stopped for want of locks."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flsl.runtime.lock import locked


def test_one_holds_it_and_others_wait_as_long_as_they_will(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path) as first:
        began = time.monotonic()
        with locked(path) as second, locked(path, 0.3) as third:
            assert (first, second, third) == (True, False, False)
        assert time.monotonic() - began >= 0.3
    with locked(path) as again:
        assert again


@pytest.mark.parametrize("patience", [60.0, math.inf])
def test_who_waits_gets_it_as_soon_as_its_holder_is_gone(tmp_path: Path, patience: float) -> None:
    path = tmp_path / "lock"
    code = (
        "import pathlib, sys, time; from flsl.runtime.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        killing = threading.Timer(0.5, holder.kill)
        killing.start()
        with locked(path) as at_once, locked(path, patience) as later:
            assert (at_once, later) == (False, True)
        killing.join()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for patience in (0.0, 60.0, math.inf):
        with locked(tmp_path / "lock", patience) as held:
            assert held

"""Who ends at which signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from processes import alive, wait_for

from flsl.runtime.outputs import atomic
from flsl.runtime.signals import STOPPING, Terminated, obey_parent, tidy_up_on_sigterm


def test_sigterm_removes_what_is_half_written(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        tidy_up_on_sigterm()
        with pytest.raises(Terminated), atomic(tmp_path / "out") as temporary:
            temporary.write_text("half")
            assert list(tmp_path.iterdir())
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def work(ready: Path) -> None:
    obey_parent()
    ready.touch()
    time.sleep(600)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_ends_at_its_parents_word_and_at_no_others(tmp_path: Path, method: str) -> None:
    process = multiprocessing.get_context(method).Process(target=work, args=(tmp_path / "ready",), daemon=True)
    process.start()
    wait_for((tmp_path / "ready").exists)
    for number in STOPPING:
        stranger = multiprocessing.get_context("fork").Process(target=os.kill, args=(process.pid, number))
        stranger.start()
        stranger.join()
    time.sleep(1.5)
    assert alive(process.pid)
    process.terminate()
    process.join(20)
    assert process.exitcode == 0

"""Who ends at which signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive, wait_for

from flsl.runtime.interrupt import StopRequest
from flsl.runtime.outputs import atomic
from flsl.runtime.signals import STOPPING, Terminated, obey_parent, raising_at_first


def test_sigterm_removes_what_is_half_written(tmp_path: Path) -> None:
    with (
        raising_at_first([signal.SIGTERM], lambda _: Terminated()),
        pytest.raises(Terminated),
        atomic(tmp_path / "out") as temporary,
    ):
        temporary.write_text("half")
        assert list(tmp_path.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert not list(tmp_path.iterdir())


def test_only_the_first_signal_raises_and_handlers_come_back() -> None:
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in signals]
    tidied = []
    with pytest.raises(SystemExit) as stop, raising_at_first(signals, SystemExit):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for number in signals:
                signal.raise_signal(number)
                tidied.append(number)
    assert (stop.value.code, tidied) == (signal.SIGTERM, [*signals])
    assert [signal.getsignal(number) for number in signals] == before


def test_what_a_process_was_started_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with raising_at_first([signal.SIGHUP], SystemExit):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stage_in_the_background_is_not_asked_to_stop_by_another_ones_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script's & does
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.agreed() == 0
            signal.raise_signal(signal.SIGUSR2)
            assert stop.agreed() == signal.SIGUSR2
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_sigterm_does_not_cut_the_commands_end() -> None:
    script = (
        "import argparse, atexit, signal, flsl.cli, flsl.__main__\n"
        "terminate = lambda *_: signal.raise_signal(signal.SIGTERM)\n"
        "atexit.register(lambda: (terminate(), print('tidied')))\n"
        "flsl.cli._parse = lambda _: argparse.Namespace(run=terminate)\n"
        "flsl.__main__.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "tidied\n", "flsl: stopped by signal 15\n")


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


def test_a_process_is_killed_with_its_parent(tmp_path: Path) -> None:
    child = (
        "import os, sys, time; from flsl.runtime.signals import end_with; end_with(os.getppid());"
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    )
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", code, child, told])
    wait_for(lambda: told.exists() and told.read_text())
    pid = int(told.read_text())
    time.sleep(1.5)
    assert alive(pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(pid), 20)

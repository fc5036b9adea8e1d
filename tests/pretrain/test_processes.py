"""What becomes of a training's processes when one of them fails or is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import alive, wait_for
from test_trainer import assert_same_run, command, make_place, pretrain, run_flsl

from flsl.runtime.checkpoint import steps as checkpoints

FAILS = """
import sys
from flsl.cli import main
from flsl.pretrain.step import TrainingStep

def fail(*_):
    raise ValueError("a fault of ours")

TrainingStep.update = fail
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("processes"))


def start(place: Path, out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a training with two loading processes; return it and these once it has saved something."""
    arguments = command(*pretrain(place, out, "compute.workers=2"))
    process = subprocess.Popen(arguments, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: checkpoints(out / "checkpoints") or process.poll() is not None)
    return process, [child.pid for child in psutil.Process(process.pid).children()]


def test_an_error_ends_all_processes(place: Path) -> None:
    arguments = [sys.executable, "-c", FAILS, *map(str, pretrain(place, place / "failed", "compute.workers=2"))]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: a fault of ours"


def test_a_loading_process_that_is_killed_is_told_and_nothing_is_lost(place: Path) -> None:
    whole, out = place / "whole", place / "worker"
    process, workers = start(place, out)
    os.kill(workers[0], signal.SIGKILL)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "flsl: error: a loading process was killed (out of memory?)" in told.splitlines()[-1]
    assert "Traceback" not in told
    assert not any(map(alive, workers))
    assert "going on after step" in run_flsl(*pretrain(place, out)).stderr
    run_flsl(*pretrain(place, whole))
    assert_same_run(out, whole)


def test_no_loading_process_outlives_a_training_that_is_killed(place: Path) -> None:
    process, workers = start(place, place / "killed")
    assert len(workers) == 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, workers)), 20)

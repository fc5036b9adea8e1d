"""What becomes of a command whose standard output refuses what is written to it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "flsl"]


def test_pager_that_is_left_ends_a_command_without_a_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([*COMMAND, "config"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("argument", ["config", "--help"])
def test_full_disk_is_one_line(argument: str) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run([*COMMAND, argument], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr == "flsl: error: No space left on device; free some and start again\n"


def test_signs_that_the_terminal_lacks_are_spelled() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    argument = 'ablations={a: {caption: "é → ü", grid: {seed: [0, 1]}}}'
    result = subprocess.run([*COMMAND, "config", argument], env=environment, capture_output=True, check=True)
    assert b"caption: \xe9 \\u2192 \xfc\n" in result.stdout

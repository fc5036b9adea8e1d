"""What a waiting process shows of a job: its state, how far the training is, and the end of its log."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flsl.launch.queue import JobState
from flsl.runtime.progress import console, say

_SECONDS_BETWEEN_LINES = 10.0
_TAIL = 1 << 16


class Live:
    """Shows the state when it changes, and the training's progress now and then.

    Args:
        what: the job in words.
        history: the stage's ``history.jsonl``.
        epochs: how many there will be.
        fresh: whether the job has just been submitted: what stands in the history is of an earlier one.
    """

    def __init__(self, what: str, history: Path, epochs: int, fresh: bool = False) -> None:
        self._what, self._history, self._epochs = what, history, epochs
        self._before = last_step(history) if fresh else None
        self._state = self._line = ""
        self._said = float("-inf")
        self._first: tuple[float, float] | None = None
        self._status = console.status(what) if sys.stderr.isatty() else None

    def __enter__(self) -> Live:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, state: JobState) -> None:
        """Show what is new."""
        text = state.state + (f" ({state.reason})" if state.reason else "")
        if state.nodes and state.state == "RUNNING":
            text += f" on {state.nodes}"
        if text != self._state:
            self._state = text
            self._first = None
            say(f"{self._what}: {text}")
        line = self._progress()
        if line is None or line == self._line:
            return
        if self._status is not None:
            self._status.update(f"{self._what}: {line}")
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            say(f"{self._what}: {line}")
        self._line = line

    def _progress(self) -> str | None:
        record = last_step(self._history)
        if record is None or record == self._before:
            return None
        epoch = float(record["epoch"])
        at = datetime.fromisoformat(record["time"]).timestamp()
        if self._first is None or epoch < self._first[0]:
            self._first = (epoch, at)
        line = (
            f"epoch {epoch:.2f}/{self._epochs}, loss {record['loss']:.4g}, {record['images_per_second']:.4g} images/s"
        )
        done, seconds = epoch - self._first[0], at - self._first[1]
        if done > 0 and seconds > 0:
            left = timedelta(seconds=math.ceil((self._epochs - epoch) * seconds / done))
            line += f", {left} left"
        return line


def last_step(history: Path) -> dict[str, Any] | None:
    """Return the newest step's record; only the end of the file is read."""
    for line in reversed(tail(history, 200)):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and record.get("kind") == "step":
            return record
    return None


def tail(path: Path, count: int) -> list[str]:
    """Return the last lines of a file; none where it cannot be read: a network file system may lose it meanwhile."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-count:]

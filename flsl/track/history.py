"""The new points of a ``history.jsonl`` that may be growing, or may have been cut back by a resumed run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from flsl.runtime.results import is_number
from flsl.track.names import curve_name

_COORDINATES = ("kind", "step", "epoch", "time")
_PROBE = 4096
_MOST_STEPS = 2**53  # the next one would not be told from it
_LONGEST_BATCH = 20_000  # so many points are held at once; the store makes calls of them that MLflow takes


@dataclass(frozen=True)
class Point:
    """One value of a curve; ``timestamp`` in milliseconds since 1970."""

    name: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class Mark:
    """How far a history file was sent, and what it looked like there.

    Attributes:
        offset: bytes, up to the end of a line.
        digest: of the file's first and of its last 4 KiB before ``offset``: lines carry the time of day, so that a
            file that was cut back and written again has other bytes there.
    """

    offset: int = 0
    digest: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Mark:
        """Read what :meth:`__str__` wrote; anything else is the beginning."""
        offset, _, digest = (text or "").partition(" ")
        return cls(int(offset), digest) if offset.isdecimal() and digest else cls()

    def __str__(self) -> str:
        return f"{self.offset} {self.digest}"

    def holds(self, path: Path) -> bool:
        """Tell whether ``path`` still begins with what was sent."""
        if not self.offset:
            return True
        try:
            with path.open("rb") as stream:
                return _digest(stream, self.offset) == self.digest
        except FileNotFoundError:
            return False


def new_points(path: Path, mark: Mark, start: int) -> Iterator[tuple[list[Point], Mark]]:
    """Yield the points after ``mark`` in batches, each with the mark of its end.

    A last line that is still being written is left for the next time; a line that is not a JSON object with a step is
    skipped. Every numeric key is a curve.

    Args:
        path: the file.
        mark: where to begin; it must hold.
        start: milliseconds since 1970, from which the points of lines without a ``time`` count, one a step.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream, path.open("rb") as probe:
        stream.seek(mark.offset)
        batch: list[Point] = []
        sent = end = mark.offset
        for line in stream:
            if not line.endswith(b"\n"):
                break
            points = _points(line, start)
            if batch and len(batch) + len(points) > _LONGEST_BATCH:
                yield batch, Mark(end, _digest(probe, end))
                batch, sent = [], end
            batch += points
            end += len(line)
        if end > sent:
            yield batch, Mark(end, _digest(probe, end))


def _points(line: bytes, start: int) -> list[Point]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return []
    if not isinstance(row, dict) or not is_number(row.get("step")) or not abs(row["step"]) < _MOST_STEPS:
        return []
    step, kind = int(row["step"]), str(row.get("kind", "step"))
    timestamp = milliseconds(row.get("time"), start)
    if timestamp is None:
        timestamp = start + step
    return [
        Point(curve_name(kind, key), float(value), timestamp, step)
        for key, value in row.items()
        if key not in _COORDINATES and is_number(value)
    ]


def milliseconds(time: Any, start: int = 0) -> int | None:
    """Return a time as milliseconds since 1970, or ``None`` when it is no time.

    Args:
        time: a ``datetime``, ISO 8601 text (UTC where it says nothing else), seconds since 1970, or seconds since
            ``start``.
        start: milliseconds since 1970.
    """
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            return None
    if isinstance(time, datetime):
        return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    if isinstance(time, int | float) and 0 <= time < 1e11:
        return round(time * 1000) + (0 if time > 1e8 else start)
    return None


def _digest(stream: BinaryIO, offset: int) -> str:
    stream.seek(0)
    first = stream.read(min(_PROBE, offset))
    stream.seek(max(0, offset - _PROBE))
    last = stream.read(min(_PROBE, offset))
    return hashlib.sha256(first + last).hexdigest()[:16] if len(last) == min(_PROBE, offset) else ""

"""Curves written straight into a SQLite store: MLflow's own way makes several objects per point.

Only the table of past points is written to, and only where it looks as it is known; all else goes through MLflow's
client: runs, params, tags, and each curve's newest point, by which MLflow finds a metric's latest value.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from flsl.track.history import Point

_COLUMNS = {
    "key": "VARCHAR(250)",
    "value": "FLOAT",
    "timestamp": "BIGINT",
    "run_uuid": "VARCHAR(32)",
    "step": "BIGINT",
    "is_nan": "BOOLEAN",
}
_INSERT = "INSERT OR IGNORE INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)"


def insert(database: Path, run_id: str, points: Sequence[Point], timeout: float) -> list[Point]:
    """Write ``points`` of a run, those that are there already once; return those that are left to MLflow's client.

    Left are the newest point of each curve, values that are not finite, which MLflow spells in its own way, and all
    where the table is not as it is known.

    Raises:
        sqlite3.Error: when the database cannot be written.
    """
    newest: dict[str, Point] = {}
    for point in points:
        if point.name not in newest or (point.step, point.timestamp) >= _order(newest[point.name]):
            newest[point.name] = point
    kept = {id(point) for point in newest.values()}
    here = [point for point in points if id(point) not in kept and math.isfinite(point.value)]
    left = [point for point in points if id(point) in kept or not math.isfinite(point.value)]
    with contextlib.closing(sqlite3.connect(database, timeout=timeout)) as connection:
        columns = {name: kind for _, name, kind, *_ in connection.execute("PRAGMA table_info(metrics)")}
        if columns != _COLUMNS:
            return list(points)
        with connection:
            connection.executemany(
                _INSERT, [(point.name, point.value, point.timestamp, run_id, point.step) for point in here]
            )
    return left


def _order(point: Point) -> tuple[int, int]:
    return point.step, point.timestamp

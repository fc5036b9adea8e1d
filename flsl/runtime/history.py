"""``history.jsonl``: a line now and then while a stage runs, cut back to the checkpoint when it resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flsl.runtime.outputs import atomic, writing


class History:
    """Appends lines to ``path``; every line is complete on the disk before the next is written.

    Args:
        path: the file.
        step: lines of later steps are dropped: a run that resumes from the checkpoint of a step writes them again.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self._path = path
        kept = [line for line in read_history(path) if line["step"] <= step]
        with atomic(path) as temporary:
            temporary.write_text("".join(_line(record) for record in kept), encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; its ``step`` says where it belongs."""
        with writing(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(record))
            stream.flush()

    def sync(self) -> None:
        """Make the lines so far durable (before the checkpoint that counts on them)."""
        with writing(self._path), self._path.open("rb") as stream:
            os.fsync(stream.fileno())


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the complete records of a history file; a last line that is still being written is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"

"""``attempts.jsonl``: a line each time that a job's processes start, written by the first of them."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flsl.runtime.outputs import writing

ATTEMPTS = "attempts.jsonl"


def read_attempts(out: Path, launch: str | None = None) -> list[dict[str, Any]]:
    """Return the attempts in a stage's folder, oldest first; with ``launch``, only those of that submission."""
    path = out / ATTEMPTS
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            attempt = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that a killed process did not finish
        if isinstance(attempt, dict) and (launch is None or attempt.get("launch") == launch):
            found.append(attempt)
    return found


def note_attempt(out: Path, launch: str, job_id: str, cluster: str, nodes: list[str]) -> int:
    """Append a line for the attempt that starts now; return how many this submission has then."""
    attempt = {
        "launch": launch,
        "job_id": job_id,
        "cluster": cluster,
        "host": socket.gethostname(),
        "nodes": nodes,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = out / ATTEMPTS
    with writing(path):
        out.mkdir(parents=True, exist_ok=True)
        # a line that was cut off by a kill must not swallow this one
        cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as stream:
            stream.write(("\n" if cut else "") + json.dumps(attempt) + "\n")
    return len(read_attempts(out, launch))

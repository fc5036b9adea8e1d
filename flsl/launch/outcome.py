"""How a job ended, and what that means: done, to be told to the user, or to be started again."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flsl.config.cluster import ClusterSettings
from flsl.launch.live import tail
from flsl.launch.queue import JobState, cancelled_by
from flsl.launch.task import error_path
from flsl.runtime.attempts import read_attempts
from flsl.runtime.outputs import writing

# in the words of the ranks' meeting point
_PORT_TAKEN = "EADDRINUSE"
_MEMORY = re.compile(r"oom[-_ ]kill|Exceeded job memory limit|exceeded memory limit|out of memory", re.IGNORECASE)


Kind = Literal["complete", "failed", "lost"]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        kind: ``complete``; ``failed``: the user must know; ``lost``: it can go on from its last checkpoint.
        message: one line about it.
        log: the file in which it says more.
    """

    kind: Kind
    message: str
    log: Path | None = None


def log_path(folder: Path, job_id: str, rank: int = 0) -> Path:
    """Return the log (standard error) of a job's rank."""
    return folder / f"{job_id}_{rank}_log.err"


def judge(folder: Path, job_id: str, tasks: int, state: JobState, settings: ClusterSettings) -> Outcome:
    """Say how a job ended that has no result.

    Args:
        folder: of its logs.
        job_id: its number.
        tasks: number of its processes.
        state: its last state.
        settings: what was asked for.
    """
    name = f"job {job_id}"
    errors = read_errors(folder, job_id, tasks)
    own = [error for error in errors if not error["lost_peer"]]
    first = own[0]["rank"] if own else errors[0]["rank"] if errors else 0
    log = log_path(folder, job_id, first)
    if state.state == "CANCELLED":
        return Outcome("failed", f"{name} was cancelled from outside {cancelled_by(job_id)}".rstrip(), log)
    logs = (line for rank in range(tasks) for line in tail(log_path(folder, job_id, rank), 40))
    if state.state == "OUT_OF_MEMORY" or (not own and any(_MEMORY.search(line) for line in logs)):
        asked = f"{settings.memory_gb:g} GB a node" if settings.memory_gb else "the site's default"
        return Outcome("failed", f"{name} ran out of memory; raise cluster.memory_gb (asked for: {asked})", log)
    if own:
        error = own[0]
        kind = "" if error["user"] else f"{error['kind']}: "
        # a process of somebody else has this job's port; the next job has another one
        how: Kind = "lost" if _PORT_TAKEN in error["message"] and not error["user"] else "failed"
        return Outcome(how, f"{name}: rank {error['rank']} on {error['host']}: {kind}{error['message']}", log)
    began = any(attempt.get("job_id") == job_id for attempt in read_attempts(folder.parent))
    if state.state == "FAILED" and not errors and not began:
        why = f"do the commands of cluster.setup work there, and do its nodes see {folder} and {sys.executable}?"
        return Outcome("failed", f"{name} failed before it began: {why}", log)
    if state.state == "TIMEOUT":
        return Outcome("lost", f"{name} met its time limit before it had saved (cluster.signal_seconds)", log)
    if errors:
        gone = sorted(set(range(tasks)) - {error["rank"] for error in errors})
        return Outcome("lost", f"{name} lost rank {', '.join(map(str, gone)) or '?'} ({state.state})", log)
    return Outcome("lost", f"{name} ended without a result ({state.state})", log)


def forget_ended(folder: Path) -> None:
    """Remove what earlier jobs have left of how they ended: a number may come again, on this machine and on SLURM."""
    for pattern in ("*_result.pkl", "*_error.json"):
        for left in folder.glob(pattern):
            with writing(left):
                left.unlink(missing_ok=True)


def read_errors(folder: Path, job_id: str, tasks: int) -> list[dict[str, Any]]:
    """Return what a job's ranks told of their errors, the earliest first: the others often follow from it."""
    found = []
    for rank in range(tasks):
        try:
            found.append(json.loads(error_path(folder, job_id, rank).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda error: float(error["time"]))

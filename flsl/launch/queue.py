"""What SLURM says of jobs: one question every few seconds for all processes of a user that wait on this machine.

A process that waits puts its job's number into a folder that all of them share, and reads the last answer there. Once
that is older than the interval, whoever finds the lock free asks for all numbers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flsl.runtime.errors import UserError
from flsl.runtime.lock import locked
from flsl.runtime.outputs import sha256_json

WHICH_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")
"""Variables by which SLURM's commands know the cluster that they ask."""
_FORGOTTEN = 120.0
"""Seconds after which nobody asks any more for a job whose waiting process is gone."""
GOING_ON = {
    "PENDING",
    "RUNNING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "CONFIGURING",
    "COMPLETING",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
    "RESV_DEL_HOLD",
}


@dataclass(frozen=True)
class JobState:
    """A job as SLURM sees it.

    Attributes:
        state: SLURM's name, e.g. ``PENDING``, ``RUNNING``, ``COMPLETED``; ``UNKNOWN`` when SLURM does not know the job.
        reason: why it waits, or why it ended; empty where there is nothing to say.
        nodes: list of its nodes as SLURM writes it.
    """

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def over(self) -> bool:
        """Whether the job has ended for good."""
        return self.state not in GOING_ON and self.state != "UNKNOWN"


class SharedQueue:
    """The answers that all waiting processes of a user on this machine share.

    Args:
        seconds: least time between two questions.
        folder: where answers are shared; ``None`` takes a folder of the user's in the machine's temporary folder.
    """

    def __init__(self, seconds: float, folder: Path | None = None) -> None:
        self._seconds = seconds
        self._folder = folder or _own_folder()
        self._wanted = self._folder / "wanted"
        self._wanted.mkdir(parents=True, exist_ok=True)

    def look(self, job_id: str) -> JobState | None:
        """Return what is known of a job, or ``None`` before the first answer that concerns it."""
        mark = self._wanted / job_id
        mark.touch()
        if not self._fresh():
            with locked(self._folder / "lock") as may_ask:
                if may_ask and not self._fresh():
                    self._ask()
        found = self._answer().get("jobs", {}).get(job_id)
        # a process of another version may have told more
        return JobState(found["state"], found["reason"], found["nodes"]) if found else None

    def forget(self, job_id: str) -> None:
        """Ask no more for a job."""
        (self._wanted / job_id).unlink(missing_ok=True)

    def _answer(self) -> dict[str, dict[str, dict[str, str]]]:
        try:
            answer = json.loads((self._folder / "answer.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def _fresh(self) -> bool:
        try:
            age = time.time() - (self._folder / "answer.json").stat().st_mtime
        except OSError:
            return False
        return 0 <= age < self._seconds

    def _ask(self) -> None:
        wanted = []
        for mark in self._wanted.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - mark.stat().st_mtime < _FORGOTTEN:
                    wanted.append(mark.name)
                else:
                    mark.unlink()
        before = self._answer().get("jobs", {})
        asked = ask(sorted(wanted))
        # a controller that does not answer says nothing new
        jobs = {job: asdict(state) for job, state in asked.items()} if asked is not None else before
        temporary = self._folder / f".answer.{os.getpid()}"
        temporary.write_text(json.dumps({"jobs": jobs}), encoding="utf-8")
        temporary.replace(self._folder / "answer.json")


def ask(jobs: Sequence[str]) -> dict[str, JobState] | None:
    """Ask SLURM for jobs: ``squeue`` for all, and ``sacct`` for those that it has forgotten.

    Returns:
        Each job's state, or ``None`` when SLURM does not answer.
    """
    known: dict[str, JobState] = {}
    if not jobs:
        return known
    command = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%A|%T|%r|%N"]
    code, out, error = run(command)
    if code and "Invalid job id" not in error:
        return None
    for job, state, reason, nodes in _fields(out, 4):
        known[job] = JobState(state, "" if reason in ("None", "(null)") else reason, nodes)
    missing = [job for job in jobs if job not in known]
    if missing:
        code, out, error = run(["sacct", "-X", "-n", "-P", "-j", ",".join(missing), "-o", "JobIDRaw,State,NodeList"])
        for job, state, nodes in _fields(out, 3):
            known[job] = JobState(state.split()[0] if state else "UNKNOWN", "", nodes)
    return {job: known.get(job, JobState("UNKNOWN")) for job in jobs}


def find_by_name(name: str) -> str | None:
    """Return the number of the user's job of that name, or ``None``.

    Raises:
        UserError: when SLURM does not answer: there may be one.
    """
    code, out, error = run(["squeue", "--noheader", "--me", "--states=all", f"--name={name}", "--format=%A"])
    if code:
        raise UserError(f"SLURM does not say whether job '{name}' is queued or running ({error}); try again later")
    found = out.split()
    return found[-1] if found else None


def cancelled_by(job_id: str) -> str:
    """Return who cancelled a job, as accounting knows it, e.g. ``"by user 1000"``; empty where it does not say."""
    _, out, _ = run(["sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State"])
    words = out.split()
    return f"by user {words[2]}" if words[:2] == ["CANCELLED", "by"] and len(words) > 2 else ""


def cancel(job_id: str) -> str:
    """Cancel a job; return why it is refused, or an empty text."""
    code, _, error = run(["scancel", job_id])
    return (error or "no reason told") if code else ""


def run(command: list[str], timeout: float = 60.0) -> tuple[int, str, str]:
    """Run one of SLURM's commands; return its exit code and what it printed.

    Raises:
        UserError: when there is no such command here.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]}: no such command here; SLURM is needed for cluster.kind slurm (local uses this machine)"
        ) from None
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]} does not answer within {timeout:g} s"
    return done.returncode, done.stdout, done.stderr.strip()


def _fields(text: str, count: int) -> Iterable[list[str]]:
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == count:
            yield [field.strip() for field in fields]


def _own_folder() -> Path:
    # numbers of jobs mean nothing on another cluster, which a login node may serve as well
    cluster = [os.environ.get(name, "") for name in WHICH_CLUSTER]
    key = f"-{sha256_json(cluster)[:8]}" if any(cluster) else ""
    folder = Path(tempfile.gettempdir()) / f"flsl-queue-{os.getuid()}{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{folder}: belongs to somebody else or may be written by others; remove it, or set TMPDIR")
    return folder

"""``job.json``: which job a stage's folder belongs to, so that a command that is started again finds it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flsl.runtime.errors import UserError
from flsl.runtime.lock import in_turn
from flsl.runtime.outputs import read_json, write_json

RECORD = "job.json"


@dataclass(frozen=True)
class JobRecord:
    """A submission.

    Attributes:
        launch: its name; the job's name in SLURM ends in it.
        cluster: ``slurm`` or ``local``.
        config_sha256: digest of all that the weights depend on.
        job_name: name in SLURM.
        tasks: number of processes.
        submitted: when, in ISO 8601.
        host: the machine that submitted it.
        job_id: number in SLURM, or of the process that leads a job on this machine; ``None`` while it is submitted.
        process_started: when that process began, in seconds since 1970 (numbers are used again).
        lost: numbers of jobs whose place it took.
        state: ``submitted``, ``complete`` or ``failed``.
        told: whether a waiting process has told how it ended.
    """

    launch: str
    cluster: str
    config_sha256: str
    job_name: str
    tasks: int
    submitted: str = ""
    host: str = ""
    job_id: str | None = None
    process_started: float | None = None
    lost: tuple[str, ...] = ()
    state: str = "submitted"
    told: bool = False

    @classmethod
    def new(cls, launch: str, cluster: str, config_sha256: str, job_name: str, tasks: int) -> JobRecord:
        """Return the record of a submission that begins now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(launch, cluster, config_sha256, job_name, tasks, now, socket.gethostname())

    def write(self, out: Path, **changes: Any) -> JobRecord:
        """Write the record with ``changes`` into a stage's folder, and return it."""
        changed = replace(self, **changes)
        write_json(out / RECORD, asdict(changed))
        return changed

    @classmethod
    def read(cls, out: Path) -> JobRecord | None:
        """Return the record in a stage's folder, or ``None`` where there is none.

        Raises:
            UserError: when the file is not what this writes.
        """
        path = out / RECORD
        if not path.exists():
            return None
        found = read_json(path, "the record of a submitted job")
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or set(found) != names:
            raise UserError(f"{path}: is not a record of a submitted job; remove it, after its job has ended")
        return cls(**{**found, "lost": tuple(found["lost"])})


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Let one process at a time submit and wait for a stage's folder; another one waits for its turn, and says so.

    A workflow that was killed may have left its waiting command behind, while it is started again.
    """
    message = f"{out}: another `flsl submit` waits for this folder's job; this one goes on when that one ends"
    with in_turn(out / ".submit.lock", message):
        yield

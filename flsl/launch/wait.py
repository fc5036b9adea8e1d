"""Waiting for a job, on SLURM or on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flsl.config.cluster import ClusterSettings
from flsl.launch.live import Live
from flsl.launch.outcome import Outcome, judge
from flsl.launch.queue import JobState, SharedQueue, cancel
from flsl.launch.record import JobRecord
from flsl.runtime.errors import Stopped, UserError
from flsl.runtime.signals import raising_at_first

_TICK = 0.5
_UNKNOWN_FOR = 60.0
"""Seconds after which a job that SLURM does not know counts as ended: its accounting may be slow."""
_LAST = 2.0
"""Seconds within which the last process of a job on this machine ends."""
_CLOCK_SET = 60.0
"""Seconds by which the time of a process's beginning may seem to have changed, as it moves with the machine's clock."""
_ENDING = 5.0
"""Seconds within which a job is gone that refuses to be cancelled because it has ended."""


_NEVER = {
    "PartitionConfig": "its partition's nodes have not what cluster.* asks for (GPUs, CPUs, memory or nodes)",
    "PartitionNodeLimit": "cluster.nodes are more than its partition allows",
    "PartitionTimeLimit": "cluster.minutes are more than its partition allows",
    "BadConstraints": "no node satisfies cluster.constraint and the rest of the request",
    "AccountNotAllowed": "cluster.account may not use its partition",
    "QOSNotAllowed": "cluster.qos may not be used with its account or partition",
    "InvalidAccount": "cluster.account is not known",
    "InvalidQOS": "cluster.qos is not known",
}
"""Why SLURM lets a job wait for ever."""


class Interrupted(Stopped):
    """The waiting process was told to end; the job goes on."""


def wait(record: JobRecord, folder: Path, settings: ClusterSettings, live: Live, fresh: bool) -> Outcome:
    """Wait until the job ends, and say how.

    A job that this process has just submitted (``fresh``) and that SLURM queues although no node could ever take it is
    cancelled at once.

    Success is what all of its processes have left as submitit's results; an error counts only once the scheduler says
    that the job has ended, as a requeued one starts anew.
    """
    assert record.job_id is not None
    with _watching(record, settings) as watch:
        ended: float | None = None
        unknown = time.monotonic()
        while True:
            if _complete(record, folder):
                return Outcome("complete", f"job {record.job_id} is complete")
            state = watch()
            if state is not None:
                live.update(state)
                if fresh and state.state == "PENDING" and state.reason in _NEVER:
                    cancel(record.job_id)
                    return Outcome("failed", f"job {record.job_id} is cancelled: {_NEVER[state.reason]}")
            if state is None or state.state != "UNKNOWN":
                unknown = time.monotonic()
            over = state is not None and (state.over or time.monotonic() - unknown > _UNKNOWN_FOR)
            if over and state is not None:
                ended = ended or time.monotonic()
                if time.monotonic() - ended > _patience(state, settings):
                    return judge(folder, record.job_id, record.tasks, state, settings)
            else:
                ended = None
            time.sleep(_TICK)


def _patience(state: JobState, settings: ClusterSettings) -> float:
    """Return the seconds within which what a job that has ended has left is seen."""
    if state.state == "ENDED":
        # its processes are of this machine, and end after the one that leads them
        return _LAST
    # where it failed, there may be nothing to wait for
    return settings.latency_seconds if state.state == "COMPLETED" else min(5.0, settings.latency_seconds)


def alive(record: JobRecord, settings: ClusterSettings) -> bool | None:
    """Tell whether a submitted job is still queued or running; ``None`` when SLURM does not say."""
    with _watching(record, settings) as watch:
        # another process's answer may be that old, and know nothing of this job
        end = time.monotonic() + _UNKNOWN_FOR + settings.poll_seconds
        while (state := watch()) is None:
            if time.monotonic() > end:
                return None
            time.sleep(_TICK)
    return not state.over and state.state != "UNKNOWN"


def end_job(record: JobRecord, settings: ClusterSettings) -> None:
    """Cancel a job and wait until it is gone.

    Raises:
        UserError: when SLURM refuses to cancel it, or does not say whether it is gone.
    """
    assert record.job_id is not None
    refused = cancel(record.job_id) if record.cluster == "slurm" else ""
    # a job that was ending is gone by then, and known to be
    end = time.monotonic() + settings.poll_seconds + _ENDING
    while (going_on := alive(record, settings)) is not False:
        if going_on is None or (refused and time.monotonic() > end):
            raise UserError(f"job {record.job_id}: is not cancelled: {refused or 'SLURM does not answer'}")
        if record.cluster == "local":
            # again and again, as processes that are just starting do not listen
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(record.job_id), signal.SIGTERM)
        time.sleep(_TICK)


def process_started(pid: int) -> float | None:
    """Return when a process of this machine began, in seconds since 1970, or ``None`` when there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def _complete(record: JobRecord, folder: Path) -> bool:
    """Tell whether every process has left a result, and none an error."""
    import submitit

    assert record.job_id is not None
    # the time of the folder is set anew so that a client of a network file system looks again
    with contextlib.suppress(OSError):
        folder.chmod(folder.stat().st_mode)
    ranks = [submitit.Job(folder, record.job_id, tasks=(rank,)) for rank in range(record.tasks)]
    return all(rank.paths.result_pickle.exists() for rank in ranks) and all(rank.exception() is None for rank in ranks)


@contextlib.contextmanager
def _watching(record: JobRecord, settings: ClusterSettings) -> Iterator[Callable[[], JobState | None]]:
    """Yield a function that returns the job's state."""
    assert record.job_id is not None
    if record.cluster == "local":
        pid, began = int(record.job_id), record.process_started

        def look() -> JobState:
            now = process_started(pid)
            same = began is not None and now is not None and abs(now - began) < _CLOCK_SET
            return JobState("RUNNING" if same else "ENDED")

        yield look
        return
    queue = SharedQueue(settings.poll_seconds)
    job_id = record.job_id
    try:
        yield lambda: queue.look(job_id)
    finally:
        queue.forget(job_id)


def interruptible() -> contextlib.AbstractContextManager[None]:
    """Raise :class:`Interrupted` at the first Ctrl-C, SIGTERM or SIGHUP; those that follow are not heeded."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return raising_at_first(signals, lambda number: Interrupted("interrupted", number))

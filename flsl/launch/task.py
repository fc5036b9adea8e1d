"""What every process of a submitted job goes through, whatever the job does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from flsl.launch.queue import run
from flsl.launch.work import Work
from flsl.runtime.attempts import note_attempt, read_attempts
from flsl.runtime.errors import Stopped, UserError
from flsl.runtime.outputs import write_json
from flsl.runtime.place import port_of
from flsl.runtime.progress import say
from flsl.runtime.signals import end_with

RESULT = "result"
# how the other ranks learn that one is gone: errors that follow from another's end
_LOST_PEER = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL",
    "TCPStore",
    "wait timeout",
)


def error_path(folder: Path, job_id: str, rank: int) -> Path:
    """Return where a rank of a job leaves its error."""
    return folder / f"{job_id}_{rank}_error.json"


@dataclass(frozen=True)
class Task:
    """Do a stage's work as one of a job's processes; submitit pickles it, so it holds plain data only.

    Attributes:
        work: what is done.
        launch: name of this submission; a job that takes a lost one's place keeps it.
        requeues: times that the job may start again.
        visible_gpus: CUDA_VISIBLE_DEVICES of a job on this machine; ``None`` leaves what the cluster sets.
    """

    work: Work
    launch: str
    requeues: int
    visible_gpus: str | None = None

    def __call__(self) -> dict[str, float]:
        """Do the work; return the final figures.

        A job that was told to stop is requeued after it saved, and this process ends without a result.
        """
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        job = JobEnvironment()
        told = error_path(job.paths.folder, job.job_id, job.global_rank)
        for stale in (job.paths.result_pickle, told):  # of an attempt before a requeue
            stale.unlink(missing_ok=True)
        requeue = signal.getsignal(signal.SIGUSR2)
        if self.visible_gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        os.environ.setdefault("MASTER_PORT", str(port_of(job.job_id)))
        place = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.cluster == "local":
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # this machine's own name need not resolve
            end_with(int(job.job_id))
        say(
            f"rank {place.rank} of {place.world_size} on {socket.gethostname()}: local rank {place.local_rank}, "
            f"master {os.environ['MASTER_ADDR']}:{place.master_port}, "
            f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
        )
        try:
            if place.rank == 0:
                self._begin(job)
            metrics = dict(self.work.do())
        except Stopped as stop:
            if job.cluster == "local" and stop.signum != signal.SIGUSR2:
                _tell(told, place.rank, UserError(f"cancelled from outside: {stop}"))
                raise
            self._end_stopped(job, stop, requeue)
            raise
        except Exception as error:
            _tell(told, place.rank, error)
            if job.cluster == "local":
                _end_siblings()
            raise
        if place.rank == 0:
            keep_result(Path(self.work.out), self.work.results)
        return metrics

    def checkpoint(self) -> Any:
        """Return what submitit requeues, or ``None`` when the job has started again often enough."""
        from submitit.helpers import DelayedSubmission

        starts = len(read_attempts(Path(self.work.out), self.launch))
        return DelayedSubmission(self) if starts <= self.requeues else None

    def _begin(self, job: Any) -> None:
        starts = note_attempt(Path(self.work.out), self.launch, job.job_id, job.cluster, list(job.hostnames))
        if starts > self.requeues + 1:
            raise UserError(
                f"cluster.requeues: the job has started {starts} times, where {self.requeues} restarts are allowed; "
                "what it saved stays, and submitting it again goes on from there"
            )

    def _end_stopped(self, job: Any, stop: Stopped, requeue: Any) -> None:
        """End this process, after the first rank had the job requeued; raises when the job is to end for good."""
        say(f"{stop}")
        if job.global_rank != 0:
            sys.exit(0)
        if job.cluster == "slurm" and _slurm_state(job.job_id) != "RUNNING":
            # cancelled, or requeued by SLURM itself: it must not be brought back by us
            sys.exit(0)
        assert callable(requeue)
        frame: FrameType | None = None
        try:
            requeue(stop.signum, frame)
        except subprocess.SubprocessError as error:  # it refuses, or does not answer
            say(f"the job could not be requeued: {error}")
            sys.exit(0)


def keep_result(out: Path, names: Sequence[str]) -> None:
    """Keep a second name of the finished files: the workflow removes outputs before it starts a rule again."""
    (out / "job" / RESULT).mkdir(parents=True, exist_ok=True)
    for name in names:
        _link(out / name, out / "job" / RESULT / name)


def deliver_result(out: Path, names: Sequence[str]) -> bool:
    """Give the finished files their names back where those are gone; return whether all are there."""
    kept = out / "job" / RESULT
    for name in names:
        if not (out / name).exists() and (kept / name).exists():
            _link(kept / name, out / name)
    return all((out / name).exists() for name in names)


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copy2(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # still there where both were names of one file already


def _tell(path: Path, rank: int, error: Exception) -> None:
    """Leave this rank's error where the waiting process finds it."""
    text = str(error).strip() or type(error).__name__
    with contextlib.suppress(OSError, UserError):
        write_json(
            path,
            {
                "rank": rank,
                "host": socket.gethostname(),
                "time": time.time(),
                "kind": type(error).__name__,
                "message": text.splitlines()[0] if not isinstance(error, UserError) else text,
                "user": isinstance(error, UserError),
                "lost_peer": not isinstance(error, UserError) and any(sign in text for sign in _LOST_PEER),
                "traceback": traceback.format_exc(),
            },
        )


def _end_siblings() -> None:
    """End the job's other processes on this machine, which would wait for this one (srun does so on SLURM)."""
    import psutil

    for process in psutil.Process(os.getppid()).children():
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.Error):
                process.kill()


def _slurm_state(job_id: str) -> str:
    """Return SLURM's name of a job's state; empty where it does not answer."""
    return run(["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"])[1].strip()

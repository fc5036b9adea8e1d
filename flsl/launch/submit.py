"""``flsl submit …``: submit a job or find the one that is there, wait for it, take its result."""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import replace
from pathlib import Path

from flsl.config.checking import check
from flsl.config.cluster import ClusterSettings
from flsl.config.experiment import Experiment
from flsl.launch import request
from flsl.launch.live import Live, tail
from flsl.launch.outcome import Outcome, forget_ended, log_path
from flsl.launch.queue import find_by_name
from flsl.launch.record import RECORD, JobRecord, only_one
from flsl.launch.task import Task, deliver_result
from flsl.launch.wait import Interrupted, alive, end_job, interruptible, process_started, wait
from flsl.launch.work import Work
from flsl.runtime.attempts import read_attempts
from flsl.runtime.errors import UserError
from flsl.runtime.progress import counted, say, warn
from flsl.track.start import start_following


def submit_work(work: Work, force: bool = False, waits: bool = True) -> None:
    """Have a stage's work done by a job of its own, and wait for it.

    A job that an earlier call submitted for the same settings and data is found again by ``job.json`` in the stage's
    folder; logs go to ``job`` in there.

    Args:
        work: what is done; ``cluster`` of its settings says what to ask for.
        force: end a job of other settings, and submit anew.
        waits: without, return once the job is submitted.

    Raises:
        UserError: when SLURM refuses the request, the job failed, or it belongs to other settings.
        Interrupted: when this process was told to end; the job goes on.
    """
    experiment = check(Experiment, work.settings, "the settings")
    out = Path(work.out)
    try:
        with interruptible(), only_one(out):
            try:
                _have_done(experiment, work, force, waits)
            except Interrupted as stop:
                # whatever was being done: what counts is whether there is a job
                record = JobRecord.read(out)
                if record is None or record.job_id is None or record.state != "submitted":
                    raise
                raise _interrupted(record, experiment.cluster, stop) from None
    except UserError as error:
        raise work.in_its_words(error) from None


def _have_done(experiment: Experiment, work: Work, force: bool, waits: bool) -> None:
    """Find the folder's job or submit one, and wait for it."""
    out = Path(work.out)
    record = _attach(experiment, work, force)
    if record is not None and record.state == "complete" and record.told and deliver_result(out, work.results):
        say(f"{out}: complete, by job {record.job_id}")
        return
    launch = record.launch if record is not None else secrets.token_hex(4)
    task = Task(work, launch, experiment.cluster.requeues)
    fresh = record is None or record.state != "submitted"
    if record is None or fresh:
        record = _submit(experiment, task)
    if waits:
        _wait(experiment, task, record, fresh)


def _attach(experiment: Experiment, work: Work, force: bool) -> JobRecord | None:
    """Return the record of the job that the folder belongs to, where it is to be waited for or its result taken."""
    out, recipe = Path(work.out), work.recipe
    record = JobRecord.read(out)
    if record is not None and record.job_id is None:
        # killed between the submission and its record: SLURM knows the job by its name
        found = find_by_name(record.job_name) if record.cluster == "slurm" else None
        record = record.write(out, job_id=found) if found else None
    if record is None:
        return None
    if record.told and record.state == "failed":
        # the log of the workflow has this attempt alone
        say(f"{out}: job {record.job_id} failed before; its logs are in {out / 'job'}")
        return None
    if record.state == "complete":
        return record if record.config_sha256 == recipe else None
    if record.cluster == "local" and record.host != socket.gethostname():
        raise UserError(
            f"{out}: its job was started on {record.host}, and is waited for there; where that machine is gone, or the "
            f"job with it, remove {out / RECORD}"
        )
    going_on = alive(record, experiment.cluster)
    if record.config_sha256 != recipe:
        if going_on is None:
            raise UserError(
                f"{out}: SLURM does not say whether job {record.job_id}, which has other settings or data, still runs; "
                "try again later"
            )
        if not going_on:
            return None
        if not force:
            raise UserError(
                f"{out}: job {record.job_id} is queued or running with other settings or data; wait for it, or "
                f"cancel it and submit anew: {_cancelling(record)}, or `flsl submit {work.command} --force …`"
            )
        say(f"cancelling job {record.job_id}, which has other settings")
        end_job(record, experiment.cluster)
        return None
    ended = going_on is False
    say(f"job {record.job_id} has ended meanwhile" if ended else f"re-attached to job {record.job_id}")
    return record


def _submit(experiment: Experiment, task: Task, lost: tuple[str, ...] = ()) -> JobRecord:
    """Submit the job; its record is written before and after."""
    work, kind = task.work, request.resolve_kind(experiment.cluster)
    out = Path(work.out)
    if kind == "local":
        task = replace(task, visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"))
    name = f"flsl-{work.run}-{work.stage}-{task.launch}-{len(lost)}"
    tasks = request.processes(experiment)
    before = JobRecord.read(out)
    forget_ended(out / "job")
    record = replace(JobRecord.new(task.launch, kind, work.recipe, name, tasks), lost=lost).write(out)
    try:
        job_id = request.submit(kind, experiment, task, name, out / "job")
    except UserError:
        # nothing was submitted
        if before is not None:
            before.write(out)
        else:
            (out / RECORD).unlink()
        raise
    started = process_started(int(job_id)) if kind == "local" else None
    record = record.write(out, job_id=job_id, process_started=started)
    shape = counted(experiment.cluster.nodes, "node") if kind == "slurm" else "this machine"
    submitted = f"submitted job {job_id}: {counted(tasks, 'process', 'es')} on {shape}"
    say(f"{submitted}; its log: {log_path(out / 'job', job_id)}")
    return record


def _wait(experiment: Experiment, task: Task, record: JobRecord, fresh: bool) -> None:
    """Wait for the job, and for those that take its place when it is lost."""
    work, settings = task.work, experiment.cluster
    out = Path(work.out)
    following = start_following(out, experiment, head=True)
    try:
        while True:
            what = f"{work.run}/{work.stage}: job {record.job_id}"
            with Live(what, out / "history.jsonl", work.epochs, fresh) as live:
                outcome = wait(record, out / "job", settings, live, fresh)
            starts = len(read_attempts(out, record.launch))
            if outcome.kind != "lost":
                break
            if starts > settings.requeues or len(record.lost) >= settings.requeues:
                reason = f"{outcome.message}; it has started {starts} times (cluster.requeues: {settings.requeues})"
                outcome = Outcome("failed", reason, outcome.log)
                break
            fresh = False
            warn(f"{outcome.message}; it goes on from its last checkpoint in another job")
            assert record.job_id is not None
            record = _submit(experiment, task, (*record.lost, record.job_id))
    finally:
        following.stop()
    if outcome.kind == "complete":
        _take(work, settings.latency_seconds)
    record.write(out, state=outcome.kind, told=True)
    if outcome.kind == "failed":
        if outcome.log is not None and (lines := tail(outcome.log, 40)):
            say(f"the end of {outcome.log}:")
            for line in lines:
                say(f"  {line}")
        raise UserError(outcome.message)
    say(f"{out}: complete, by job {record.job_id} ({counted(starts, 'attempt')})")


def _take(work: Work, latency: float) -> None:
    """Wait until the finished files are seen here."""
    out = Path(work.out)
    end = time.monotonic() + latency
    while not deliver_result(out, work.results):
        if time.monotonic() > end:
            raise UserError(
                f"{out}: the job is complete, but its files are not seen here after {latency:g} s "
                "(cluster.latency_seconds); is the folder shared with the compute nodes?"
            )
        time.sleep(1.0)


def _interrupted(record: JobRecord, settings: ClusterSettings, stop: Interrupted) -> Interrupted:
    command = _cancelling(record)
    if settings.cancel_on_interrupt:
        end_job(record, settings)
        return Interrupted(f"interrupted: job {record.job_id} is cancelled", stop.signum)
    return Interrupted(
        f"interrupted: job {record.job_id} goes on, and the same command finds it again; {command} cancels it",
        stop.signum,
    )


def _cancelling(record: JobRecord) -> str:
    return f"`scancel {record.job_id}`" if record.cluster == "slurm" else f"`kill {record.job_id}`"
